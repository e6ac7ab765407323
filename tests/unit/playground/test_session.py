"""The scores of the playground are those of an engine run, and are computed once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from anomalib.engine import Engine

from anovl_plugin import AnoVL, ZeroShotPostProcessor, describe
from anovl_plugin.components.references.reference_images import ReferenceImageError
from anovl_plugin.playground.session import Session, judge, threshold_arguments
from anovl_plugin.playground.words import NORMAL_STATES, Words
from anovl_plugin.vision.source import BackboneError

BRICK = Words("brick", "texture", defects=("paint", "plastic"))
OTHER = Words("01", normal_states=("clean {}", "{} it's"), abnormal_states=("# {}", "dirty {}"))


@pytest.fixture(scope="module")
def session():
    return Session("anovl-demo")


def predict(settings, threshold, path, folder):
    model = AnoVL(
        **settings.arguments(),
        post_processor=ZeroShotPostProcessor(**threshold_arguments(threshold)),
        visualizer=False,
        evaluator=False,
    )
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=folder, logger=False, enable_progress_bar=False)
    (batch,) = engine.predict(model, data_path=path, return_predictions=True)
    return batch


@pytest.mark.parametrize(
    ("words", "threshold", "with_references"),
    [(BRICK, 0.5, False), (BRICK, 0.62, True), (OTHER, 0.5, False), (Words("null"), 0.4, False)],
)
def test_results_are_those_of_an_engine_run(session, photos, tmp_path, words, threshold, with_references):
    references = photos / "spare" if with_references else None
    scored = session.score(photos / "crack.png", words, references)
    judged = judge(scored, threshold)
    batch = predict(scored.settings, threshold, photos / "crack.png", tmp_path)
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(scored.score, batch.pred_score.as_subclass(torch.Tensor), **close)
    torch.testing.assert_close(scored.anomaly_map, batch.anomaly_map.as_subclass(torch.Tensor), **close)
    assert judged.content.label == ("abnormal" if batch.pred_label.item() else "normal")
    assert (judged.content.masks["pred_mask"] == batch.pred_mask.numpy()[0]).all()
    assert judged.content.threshold == pytest.approx(threshold)
    (description,) = describe(batch)
    assert [each.region.box for each in judged.description.regions] == [each.region.box for each in description.regions]
    for own, known in zip(judged.description.regions, description.regions, strict=True):
        assert own.shares == pytest.approx(known.shares, abs=1e-5)
    assert judged.content.explanation == (batch.explanation[0] if batch.explanation else "")


def test_only_new_sentences_are_encoded(photos):
    session = Session("anovl-demo")
    counts = []
    for words in (
        Words("wall"),
        Words("wall", defects=("crack",)),
        Words("wall", normal_states=NORMAL_STATES[1:]),
        Words("wall", normal_states=(*NORMAL_STATES, "clean {}")),
        Words("wall", defects=("crack",)),
    ):
        before = session.encoded
        session.score(photos / "crack.png", words)
        counts.append(session.encoded - before)
    assert counts == [924, 66, 0, 66, 0]


def test_remembered_sentences_give_the_embeddings_of_new_ones(photos):
    session, fresh = Session("anovl-demo"), Session("anovl-demo")
    session.score(photos / "crack.png", Words("wall"))
    again = session.score(photos / "crack.png", Words("wall", defects=("crack",)))
    torch.testing.assert_close(
        again.score, fresh.score(photos / "crack.png", again.settings.words).score, atol=1e-6, rtol=0
    )


def test_nothing_is_computed_twice(session, photos):
    first = session.score(photos / "crack.png", BRICK)
    assert session.score(photos / "crack.png", Words(**vars(BRICK))) is first
    assert session.score(photos / "good.png", BRICK) is not first


def test_changed_files_are_read_again(session, photos, tmp_path):
    path, references = tmp_path / "image.png", tmp_path / "references"
    references.mkdir()
    path.write_bytes((photos / "good.png").read_bytes())
    (references / "0.png").write_bytes((photos / "spare" / "000.png").read_bytes())
    before = session.score(path, BRICK, references)
    path.write_bytes((photos / "crack.png").read_bytes())
    changed = session.score(path, BRICK, references)
    assert changed.score != before.score
    (references / "1.png").write_bytes((photos / "spare" / "001.png").read_bytes())
    assert session.score(path, BRICK, references).score != changed.score


def test_threads_do_not_mix(photos):
    sets = [Words("wall"), Words("gravel"), BRICK, OTHER]
    alone = [float(Session("anovl-demo").score(photos / "crack.png", words).score) for words in sets]
    session = Session("anovl-demo")
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda words: float(session.score(photos / "crack.png", words).score), sets * 3))
    assert together == pytest.approx(alone * 3, abs=1e-6)


def test_threshold_needs_no_model(session, photos, monkeypatch):
    scored = session.score(photos / "crack.png", BRICK)
    monkeypatch.setattr(AnoVL, "predict_step", None)
    score = float(scored.score)
    judged = [judge(scored, threshold) for threshold in (score - 0.01, score + 0.01)]
    assert [each.content.label for each in judged] == ["abnormal", "normal"]
    assert all(each.content.score == score for each in judged)
    areas = [sum(named.region.area for named in judge(scored, at).description.regions) for at in (0.45, 0.5, 0.6, 0.99)]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] == 0


def test_words_that_the_clip_does_not_tell_apart_are_noted(session, photos):
    scored = session.score(photos / "crack.png", Words("brick", defects=("scratch", "hole")))
    assert scored.notes == ("The CLIP does not tell 'scratch', 'hole' apart, so no defect is named; use other words.",)
    assert judge(scored).content.explanation == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Words(""), "class_name is '', but must name what the images show"),
        (Words("brick", "metal"), "domain is 'metal', but must be one of 'auto', 'object', 'texture'"),
        (Words("brick", normal_states=()), "normal_states is an empty list; write at least one entry"),
        (Words("brick", abnormal_states=("bad",)), "abnormal_states has 'bad', which lacks {}"),
        (Words("brick", normal_states=("bad {}",), abnormal_states=("bad {}",)), "which normal_states has, too"),
        (Words("brick", defects=("crack", "crack")), "has 'crack' twice; remove one"),
        (Words("brick " * 80), "is longer than the 77 tokens this text tower reads; use a shorter"),
        (
            Words("brick", normal_states=("normal {}",), abnormal_states=("NORMAL {}",)),
            "the CLIP does not tell these normal states from the abnormal ones, so all scores would be 0.5; use other",
        ),
    ],
)
def test_wrong_words_are_an_error(session, photos, words, message):
    with pytest.raises(ValueError, match=message) as error:
        session.score(photos / "crack.png", words)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_an_error(session, photos, tmp_path):
    broken = tmp_path / "torn.png"
    broken.write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"^torn\.png cannot be read as an image \(.*\); save it again, or use another$"
    ):
        session.score(broken, BRICK)
    with pytest.raises(
        ValueError, match=r"^gone\.png cannot be read \(No such file or directory\); use another image$"
    ):
        session.score(tmp_path / "gone.png", BRICK)
    with pytest.raises(ReferenceImageError, match=r"the reference image .*torn\.png cannot be read"):
        session.score(photos / "crack.png", BRICK, tmp_path)


def test_wrong_sources_are_an_error_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("anovl_plugin.playground.session.load_backbone", None)
    with pytest.raises(ValueError, match=r"device is 'teapot', which cannot be used here \(.*\); use cpu"):
        Session("anovl-demo", device="teapot")
    with pytest.raises(BackboneError, match="ViT-Z-99"):
        Session("ViT-Z-99")


def test_other_clips_are_possible(weights_of, photos):
    session = Session("tiny-square", weights_of("tiny-square"))
    scored = session.score(photos / "crack.png", Words("brick"))
    assert scored.settings.arguments()["pretrained"] == weights_of("tiny-square")
    model = AnoVL(**scored.settings.arguments(), visualizer=False).eval()
    pixels = torch.from_numpy(scored.pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(model(pixels).pred_score, scored.score, atol=1e-5, rtol=0)
