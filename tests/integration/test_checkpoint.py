"""A checkpoint is authoritative: it supplies every setting, and settings that contradict it are errors."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anovl_plugin import AnoVL, LinearAdapter, ZeroShotPostProcessor
from anovl_plugin.components.checkpoints.checkpoint import CheckpointError
from anovl_plugin.scoring.image_score import CombinedScore, GlobalScore, MapScore
from anovl_plugin.vision import backbone as backbones
from tests.helpers import commands, image_datasets
from tests.helpers.engine_runs import Predictions, assert_same, quiet_engine, run_predict, run_test

# Every setting that a run can have, one by one, and all together.
SETTINGS = {
    "class_name": {"class_name": "bolt"},
    "domain": {"domain": "texture"},
    "prompts": {"prompts": {"extends": "paper", "defects": ["scratch"], "nouns": {"bottle": "flask"}}},
    "image_size": {"image_size": (48, 24)},
    "image_score": {"image_score": MapScore(0.5)},
    "views": {"image_score": GlobalScore(["image", "flip"])},
    "tiles_per_side": {"tiles_per_side": 2},
    "adaptation": {"adaptation": LinearAdapter(steps=2, seed=3)},
    "all": {
        "class_name": "bolt",
        "domain": "texture",
        "image_size": 40,
        "image_score": CombinedScore(["flip"], 0.1),
        "tiles_per_side": 1,
        "adaptation": LinearAdapter(steps=1),
    },
}


class Written(NamedTuple):
    """A checkpoint, and the predictions and metrics of the run that wrote it."""

    path: Path
    predictions: Predictions
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    image_datasets.write_mvtec(root / "data")
    return root


@pytest.fixture(scope="module")
def bare(photos):
    return image_datasets.write_bare(photos / "bare")


@pytest.fixture(scope="module")
def bottles(photos):
    return lambda category="bottle": image_datasets.MVTecAD(photos / "data", category, eval_batch_size=4, num_workers=0)


@pytest.fixture(scope="module")
def write(weights_of, bottles, bare, tmp_path_factory):
    """Return a function that runs `test` with some settings and returns the checkpoint."""

    def run(**settings: object) -> Written:
        root = tmp_path_factory.mktemp("written")
        model = AnoVL("tiny-square", pretrained=weights_of("tiny-square"), visualizer=False, **settings)
        metrics = run_test(model, root / "test", bottles())
        (path,) = root.rglob("*.ckpt")
        return Written(path, run_predict(model, root / "predict", data_path=bare), metrics)

    return run


@pytest.fixture(scope="module")
def plain(write):
    return write()


@pytest.mark.parametrize("save_backbone", [False, True])
@pytest.mark.parametrize("case", SETTINGS)
def test_a_default_model_reproduces_the_run(case, save_backbone, write, bottles, bare, tmp_path):
    written = write(**SETTINGS[case], save_backbone=save_backbone)
    found = run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=written.path)
    assert_same(found, written.predictions)
    loaded = AnoVL.load_from_checkpoint(written.path, visualizer=False)
    assert_same(run_predict(loaded, tmp_path, data_path=bare), written.predictions)
    assert run_test(AnoVL(visualizer=False), tmp_path, bottles(), ckpt_path=written.path) == written.metrics


def test_validate_keeps_what_the_checkpoint_says(plain, bottles, tmp_path):
    model = AnoVL(visualizer=False)
    quiet_engine(tmp_path).validate(model, datamodule=bottles(), ckpt_path=plain.path, verbose=False)
    state = torch.load(plain.path, weights_only=True)["state_dict"]
    assert model.settings == state["_extra_state"]["settings"]
    assert model.post_processor.image_max == state["post_processor.image_max"]


def test_a_checkpoint_of_a_checkpoint_is_the_same(write, bare, bottles, tmp_path):
    written = write(**SETTINGS["all"])
    run_test(AnoVL(visualizer=False), tmp_path / "again", bottles(), ckpt_path=written.path)
    engine = quiet_engine(tmp_path / "validated")
    engine.validate(AnoVL(visualizer=False), datamodule=bottles(), ckpt_path=written.path, verbose=False)
    (second,) = (tmp_path / "validated").rglob("*.ckpt")
    found = run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=second)
    assert_same(found, written.predictions)


def test_a_self_contained_checkpoint_needs_no_source(weights_of, bottles, bare, tmp_path, replace_loading):
    moved = shutil.copy(weights_of("tiny-square"), tmp_path / "moved.safetensors")
    model = AnoVL("tiny-square", pretrained=moved, save_backbone=True, image_size=(48, 24), visualizer=False)
    run_test(model, tmp_path / "test", bottles())
    expected = run_predict(model, tmp_path / "one", data_path=bare)
    (checkpoint,) = (tmp_path / "test").rglob("*.ckpt")
    Path(moved).unlink()

    def fail(*_, **__):
        pytest.fail("the CLIP was loaded from its source")

    replace_loading(fail)
    found = run_predict(AnoVL(visualizer=False), tmp_path / "two", data_path=bare, ckpt_path=checkpoint)
    assert_same(found, expected)
    loaded = AnoVL.load_from_checkpoint(checkpoint, visualizer=False)
    assert loaded.settings["save_backbone"]
    assert_same(run_predict(loaded, tmp_path / "three", data_path=bare), expected)


def test_a_relative_and_an_absolute_path_of_the_weights_agree(weights_of, bottles, bare, tmp_path, monkeypatch):
    file = Path(shutil.copy(weights_of("tiny-square"), tmp_path / "clip.safetensors"))
    monkeypatch.chdir(tmp_path)
    model = AnoVL("tiny-square", pretrained=file.name, save_backbone=True, visualizer=False)
    run_test(model, tmp_path / "test", bottles())
    expected = run_predict(model, tmp_path / "one", data_path=bare)
    (checkpoint,) = (tmp_path / "test").rglob("*.ckpt")
    found = AnoVL("tiny-square", pretrained=file, visualizer=False)
    assert_same(run_predict(found, tmp_path / "two", data_path=bare, ckpt_path=checkpoint), expected)
    other = Path(shutil.copy(file, tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match=r"^pretrained is '.*other\.safetensors', but the checkpoint was"):
        run_predict(AnoVL("tiny-square", pretrained=other), tmp_path, data_path=bare, ckpt_path=checkpoint)


def test_missing_weights_are_a_one_line_error(weights_of, bottles, bare, tmp_path):
    moved = shutil.copy(weights_of("tiny-square"), tmp_path / "moved.safetensors")
    model = AnoVL("tiny-square", pretrained=moved, visualizer=False)
    run_test(model, tmp_path / "test", bottles())
    expected = run_predict(model, tmp_path / "one", data_path=bare)
    (checkpoint,) = (tmp_path / "test").rglob("*.ckpt")
    Path(moved).unlink()
    for load in (
        lambda: run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=checkpoint),
        lambda: AnoVL.load_from_checkpoint(checkpoint),
    ):
        with pytest.raises(backbones.BackboneError, match=r"moved\.safetensors.*neither a file nor") as caught:
            load()
        assert "\n" not in str(caught.value)
    # The same weights may be elsewhere.
    elsewhere = AnoVL(pretrained=weights_of("tiny-square"), visualizer=False)
    assert_same(run_predict(elsewhere, tmp_path / "two", data_path=bare, ckpt_path=checkpoint), expected)


def test_no_text_tower_is_loaded_for_a_checkpoint(plain, bare, tmp_path, replace_loading):
    calls = []

    def spy(*arguments, image=True, text=True):
        calls.append((image, text))
        return backbones.load_backbone(*arguments, image=image, text=text)

    replace_loading(spy)
    run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=plain.path)
    assert calls == [(True, False)]
    AnoVL.load_from_checkpoint(plain.path)
    assert calls == [(True, False)] * 2


def test_a_misspelled_setting_to_change_is_an_error(plain):
    with pytest.raises(TypeError, match=r"^image_scor is not a setting of AnoVL; use one of backbone, class_name, .*"):
        AnoVL.load_from_checkpoint(plain.path, image_scor="map")


def test_the_constructor_loads_nothing(weights_of, replace_loading):
    def fail(*_, **__):
        pytest.fail("weights were loaded")

    replace_loading(fail)
    model = AnoVL("tiny-square", pretrained=weights_of("tiny-square"), class_name="bolt")
    assert model.input_size == (32, 32)
    assert AnoVL().model.image_size == (240, 240)


CONTRADICTIONS = {
    "class_name": ({"class_name": "cable"}, "^class_name is 'cable', but the checkpoint was made with 'bottle'; omit"),
    "domain": (
        {"domain": "texture"},
        "^domain is 'texture', but the checkpoint was made with 'object'; omit domain",
    ),
    "prompts": (
        {"prompts": {"extends": "paper", "defects": ["crack"]}},
        "^prompts is {'normal_states.*, but the checkpoint was made with None; omit prompts",
    ),
    "image_size": (
        {"image_size": 40},
        r"^image_size is \(40, 40\), but the checkpoint was made with \(32, 32\); omit",
    ),
    "image_score": (
        {"image_score": "map"},
        r"^image_score is MapScore\(top_fraction=0.0\), but the checkpoint was made with GlobalScore\(views='single'\)",
    ),
    "tiles_per_side": ({"tiles_per_side": 2}, "^tiles_per_side is 2, but the checkpoint was made with None; omit"),
    "adaptation": (
        {"adaptation": LinearAdapter()},
        r"^adaptation is LinearAdapter\(steps=5, .*\), but the checkpoint was made with None; omit adaptation",
    ),
    "backbone": ({"backbone": "anovl-demo"}, "^the checkpoint was made with another CLIP .*'anovl-demo'"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_setting_that_the_checkpoint_contradicts_is_an_error(case, plain, bare, bottles, weights_of, tmp_path):
    options, message = CONTRADICTIONS[case]
    if case != "backbone":
        options = {"backbone": "tiny-square", "pretrained": weights_of("tiny-square"), **options}
    for run in (
        lambda: run_predict(AnoVL(**options), tmp_path, data_path=bare, ckpt_path=plain.path),
        lambda: run_test(AnoVL(**options), tmp_path, bottles(), ckpt_path=plain.path),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "options",
    [
        {"class_name": "bottle"},
        {"domain": "object"},
        {"image_size": 32},
        {"image_size": [32, 32]},
        {"image_score": "global"},
    ],
)
def test_a_setting_that_agrees_with_the_checkpoint_is_not_an_error(options, plain, bare, tmp_path):
    found = run_predict(AnoVL(visualizer=False, **options), tmp_path, data_path=bare, ckpt_path=plain.path)
    assert_same(found, plain.predictions)


def test_the_category_must_match_the_checkpoint(plain, photos, bottles, tmp_path):
    image_datasets.write_mvtec(photos / "data", "cable")
    with pytest.raises(
        CheckpointError, match=r"^the data module's category is 'cable', but .* made with 'bottle', and its"
    ):
        run_test(AnoVL(visualizer=False), tmp_path, bottles("cable"), ckpt_path=plain.path)


def test_data_without_a_category_keep_the_class_of_the_checkpoint(plain, photos, tmp_path):
    folder = image_datasets.folder(photos / "folder", masks=True)
    model = AnoVL(visualizer=False)
    run_test(model, tmp_path, folder, ckpt_path=plain.path)
    assert model.model.text_bank.class_name == "bottle"


def test_other_weights_are_an_error(plain, weights_of, bottles, tmp_path):
    weights = load_file(weights_of("tiny-square"))
    weights["visual.transformer.resblocks.0.attn.out_proj.bias"][0] += 1e-3
    other = tmp_path / "other.safetensors"
    save_file(weights, other)
    message = (
        r"^the checkpoint was made with another CLIP \(fingerprint \w{16}, backbone 'tiny-square', pretrained .*\) "
    )
    with pytest.raises(ValueError, match=message):
        AnoVL.load_from_checkpoint(plain.path, pretrained=str(other))
    with pytest.raises(ValueError, match=message):
        run_test(AnoVL("tiny-square", pretrained=other), tmp_path, bottles(), ckpt_path=plain.path)


@pytest.mark.parametrize(
    "change",
    [{"class_name": "cable"}, {"domain": "texture"}, {"image_score": "map"}, {"tiles_per_side": 2}, {"image_size": 40}],
)
def test_a_setting_changed_on_purpose_starts_thresholds_again(change, write, weights_of, bare, tmp_path):
    written = write(post_processor=ZeroShotPostProcessor(pixel_threshold=0.7))
    (name,) = change
    with pytest.warns(
        UserWarning, match=f"^{name} of the checkpoint changed on purpose, so its thresholds do not hold"
    ):
        loaded = AnoVL.load_from_checkpoint(written.path, visualizer=False, **change)
    assert loaded.post_processor.image_threshold == 0.5
    assert loaded.post_processor.pixel_threshold == pytest.approx(0.7)
    made = {"class_name": "bottle", **change}
    post_processor = ZeroShotPostProcessor(pixel_threshold=0.7)
    fresh = AnoVL(
        "tiny-square",
        pretrained=weights_of("tiny-square"),
        post_processor=post_processor,
        visualizer=False,
        **made,
    )
    expected = run_predict(fresh, tmp_path / "one", data_path=bare)
    assert_same(run_predict(loaded, tmp_path / "two", data_path=bare), expected)


def test_another_class_on_the_engine_starts_thresholds_again(weights_of, photos, bottles, tmp_path):
    image_datasets.write_mvtec(photos / "data", "cable")
    model = AnoVL("tiny-square", pretrained=weights_of("tiny-square"), visualizer=False)
    run_test(model, tmp_path / "one", bottles())
    assert model.post_processor.image_threshold != 0.5
    engine = quiet_engine(tmp_path / "two", limit_val_batches=0)
    engine.test(model, datamodule=bottles("cable"), verbose=False)
    assert model.model.text_bank.class_name == "cable"
    assert model.post_processor.image_threshold == 0.5


def test_components_of_the_checkpoint_are_used(write, bare, tmp_path):
    transform = Compose([Resize([32, 32], antialias=True), Normalize([0.5] * 3, [0.25] * 3)])
    written = write(pre_processor=PreProcessor(transform), post_processor=ZeroShotPostProcessor(image_sensitivity=0.7))
    found = run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=written.path)
    assert_same(found, written.predictions)


def test_a_component_that_was_off_stays_off(weights_of, bottles, tmp_path):
    images = image_datasets.write_bare(tmp_path / "bare")
    source = {"backbone": "tiny-square", "pretrained": weights_of("tiny-square")}
    model = AnoVL(**source, image_size=40, pre_processor=False, post_processor=False, visualizer=False, evaluator=False)
    engine = quiet_engine(tmp_path / "test")
    engine.validate(model, datamodule=bottles(), verbose=False)
    (checkpoint,) = (tmp_path / "test").rglob("*.ckpt")
    expected = quiet_engine(tmp_path / "one").predict(model, data_path=images, return_predictions=True)
    fresh = AnoVL(visualizer=False)
    found = quiet_engine(tmp_path / "two").predict(fresh, data_path=images, ckpt_path=checkpoint)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.pred_score.as_subclass(torch.Tensor), other.pred_score.as_subclass(torch.Tensor))
        assert one.pred_label is None


def test_a_different_post_processor_is_an_error(plain, bare, tmp_path):
    message = "^post_processor is a PostProcessor, but the checkpoint was made with a ZeroShotPostProcessor; pass one"
    with pytest.raises(ValueError, match=message):
        run_predict(AnoVL(post_processor=PostProcessor()), tmp_path, data_path=bare, ckpt_path=plain.path)


def test_a_different_pre_processor_is_an_error(plain, bare, tmp_path):
    other = PreProcessor(Compose([Resize([32, 32], antialias=True), Normalize([0.5] * 3, [0.5] * 3)]))
    with pytest.raises(CheckpointError, match=r"^pre_processor is not the checkpoint's; omit it, or change it on"):
        run_predict(AnoVL(pre_processor=other), tmp_path, data_path=bare, ckpt_path=plain.path)


def test_a_checkpoint_of_another_model_is_an_error(plain, bare, tmp_path):
    content = torch.load(plain.path, weights_only=True)
    content["state_dict"] = {"weight": torch.zeros(1)}
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    message = "^the checkpoint was not written by this version of AnoVL: .* set ckpt_path to a checkpoint of AnoVL"
    with pytest.raises(CheckpointError, match=message):
        AnoVL.load_from_checkpoint(path)
    with pytest.raises(CheckpointError, match=message):
        run_predict(AnoVL(), tmp_path, data_path=bare, ckpt_path=path)


def test_a_checkpoint_with_a_damaged_text_bank_is_an_error(plain, tmp_path):
    content = torch.load(plain.path, weights_only=True)
    content["state_dict"]["model.text_banks.0.state_embeddings"][0, 0] = float("nan")
    path = tmp_path / "damaged.ckpt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"^the text bank of 'bottle' in the checkpoint holds NaN or infinite values"):
        AnoVL.load_from_checkpoint(path)


EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from dataclasses import dataclass
from anovl_plugin import Adaptation
@dataclass
class Evil(Adaptation):
    def adapt(self, tokens, text_bank):
        return tokens
raise SystemExit(3)
"""


@pytest.mark.parametrize("part", ["adaptation", "image_score"])
def test_a_checkpoint_imports_nothing(part, plain, bare, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(plain.path, weights_only=True)
    evil = {"class_path": "evil_module.Evil", "init_args": {}}
    content["hyper_parameters"][part] = content["state_dict"]["_extra_state"]["settings"][part] = evil
    path = tmp_path / "evil.ckpt"
    torch.save(content, path)
    message = (
        f"^{part} is 'evil_module.Evil', which is neither part of anovl_plugin nor imported, and a checkpoint must"
    )
    for load in (
        lambda: AnoVL.load_from_checkpoint(path),
        lambda: run_predict(AnoVL(), tmp_path, data_path=bare, ckpt_path=path),
        lambda: quiet_engine(tmp_path).export(AnoVL(), export_type="torch", ckpt_path=path),
    ):
        with pytest.raises(ValueError, match=message):
            load()
    assert not marker.exists()
    assert "evil_module" not in sys.modules


def test_a_checkpoint_with_code_in_it_runs_nothing(plain, bare, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    content = torch.load(plain.path, weights_only=True)
    content["hyper_parameters"]["class_name"] = Touch()
    path = tmp_path / "evil.ckpt"
    torch.save(content, path)
    for load in (
        lambda: AnoVL.load_from_checkpoint(path),
        lambda: run_predict(AnoVL(), tmp_path, data_path=bare, ckpt_path=path),
    ):
        with pytest.raises(Exception, match=r"[Ww]eights.only"):
            load()
    assert not (tmp_path / "ran").exists()


def test_the_command_line_needs_nothing_but_the_checkpoint(tmp_path):
    """The README's example on the small CLIP, with settings that change scores."""
    from anovl_plugin.demo.datamodule import make_category

    make_category(tmp_path / "photos", "brick")
    model = "--model AnoVL --model.visualizer false --trainer.accelerator cpu"
    settings = "--model.backbone anovl-demo --model.domain texture --model.image_score map"
    data = f"--data MVTecAD --data.root {tmp_path / 'photos'} --data.category brick --data.num_workers 0"
    done = commands.run(shlex.split(f"anomalib test {model} {settings} {data}"), tmp_path)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    good = tmp_path / "photos/brick/test/good"
    done = commands.run(shlex.split(f"anomalib predict {model} --ckpt_path {checkpoint} --data {good}"), tmp_path)
    assert done.returncode == 0, done.stderr
    expected = run_predict(AnoVL.load_from_checkpoint(checkpoint, visualizer=False), tmp_path, data_path=good)
    assert not expected.label.any()
    found = run_predict(AnoVL(visualizer=False), tmp_path, data_path=good, ckpt_path=checkpoint)
    assert_same(found, expected)
