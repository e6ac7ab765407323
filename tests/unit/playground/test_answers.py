"""What the playground answers: images that are found and kept, results as HTML, and mistakes in one line."""

import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

from anovl_plugin.playground.answers import Playground, explain_problem
from anovl_plugin.playground.images import find_demo_images, find_images, is_readable_path, keep_image, keep_together
from anovl_plugin.playground.results import render_error, render_image, render_result
from anovl_plugin.playground.session import Session, judge
from anovl_plugin.playground.words import ABNORMAL_STATES, NORMAL_STATES, Words

HOSTILE = "<b>&\"'</pre><script>alert(1)</script>"


@pytest.fixture(scope="module")
def session():
    return Session("anovl-demo")


@pytest.fixture
def playground(session, photos, tmp_path):
    return Playground(session, find_images(photos), tmp_path / "kept")


def text_of(page):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_words_are_read_from_a_form():
    words = Words.parse(" nut ", "object", "fine {}\n\n  new {} ", "bent {}", "crack; missing part,\nhole,")
    assert words == Words("nut", "object", ("fine {}", "new {}"), ("bent {}",), ("crack", "missing part", "hole"))
    paper = Words.parse("nut", "auto", "\n".join(NORMAL_STATES), "\n".join(ABNORMAL_STATES), "")
    assert paper == Words("nut")
    assert paper.arguments() == {"class_name": "nut"}


def test_images_of_a_folder_are_found(photos):
    assert list(find_images(photos)) == ["crack.png", "good.png", "spare/000.png", "spare/001.png", "spare/002.png"]
    assert find_images(photos / "good.png") == {"good.png": photos / "good.png"}


def test_folders_without_images_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"^the folder '.*' holds no image; give an image or a folder of images$"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match=r"^there is no file or folder '.*gone'; give an image or a folder of images$"):
        find_images(tmp_path / "gone")


def test_folders_with_too_many_images_are_an_error(photos, monkeypatch):
    monkeypatch.setattr("anovl_plugin.playground.images.MOST_IMAGES", 4)
    with pytest.raises(
        ValueError, match=r"^the folder '.*' holds more than 4 images to choose from; give a smaller one$"
    ):
        find_images(photos)


def test_demo_images_show_each_surface_and_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("anovl_plugin.demo.datamodule.get_datasets_dir", lambda: tmp_path)
    found = find_demo_images()
    kinds = ("crack", "good", "hole", "scratch", "stain")
    assert {f"{surface}, {kind}" for surface in ("brick", "grass", "gravel", "wood") for kind in kinds} <= set(found)
    assert all(path.is_file() for path in found.values())


def test_kept_files_are_the_same_and_kept_once(photos, tmp_path):
    copy = keep_image(photos / "crack.png", tmp_path)
    assert copy.read_bytes() == (photos / "crack.png").read_bytes()
    assert keep_image(photos / "crack.png", tmp_path) == copy
    assert keep_image(photos / "good.png", tmp_path) != copy


def test_kept_files_have_names_that_commands_read(photos, tmp_path):
    for name in ("Prüfling 1.png", "日本.png", "-x.png", "'$(id)'.png", f"{'x' * 200}.PNG", "...png.png"):
        source = tmp_path / name
        source.write_bytes((photos / "crack.png").read_bytes())
        copy = keep_image(source, tmp_path / "kept")
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(png|PNG)", copy.name)
        assert is_readable_path(copy)


def test_files_of_one_name_are_kept_side_by_side(photos, tmp_path):
    files = [photos / "spare" / "000.png"]
    for folder, source in (("a", "001.png"), ("b", "002.png")):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "000.png")
        files[-1].write_bytes((photos / "spare" / source).read_bytes())
    folder = keep_together(files, tmp_path / "kept")
    assert sorted(path.read_bytes() for path in folder.iterdir()) == sorted(path.read_bytes() for path in files)
    assert keep_together(files[::-1], tmp_path / "kept") == folder


def test_each_set_of_words_has_its_answer(playground):
    image, (first, second) = playground.answer("crack.png", None, None, 0.5, [Words("brick"), Words("gravel")])
    assert "crack.png · 128 × 128 pixels" in text_of(image)
    assert (first.scored.settings.words.class_name, second.scored.settings.words.class_name) == ("brick", "gravel")
    assert f"score {float(second.scored.score):.3f}, threshold 0.500" in text_of(second.page)
    assert first.page != second.page


def test_a_mistake_in_one_set_of_words_leaves_the_other(playground):
    image, (first, second) = playground.answer("crack.png", None, None, 0.5, [Words(""), Words("brick")])
    assert first.scored is None
    assert text_of(first.page).startswith("class_name is '', but must name what the images show")
    assert second.scored is not None
    assert image


def test_dropped_files_take_the_place_of_the_chosen_image(playground, photos):
    image, (answer,) = playground.answer("crack.png", str(photos / "good.png"), None, 0.5, [Words("brick")])
    assert "good.png" in text_of(image)
    assert answer.scored.path.parent.parent == playground.folder
    references = [str(photos / "spare" / "000.png"), str(photos / "spare" / "001.png")]
    _, (answer,) = playground.answer("crack.png", None, references, 0.5, [Words("brick")])
    assert "2 reference images" in text_of(answer.page)


def test_paths_that_commands_do_not_read_are_copied(session, photos, tmp_path):
    source = tmp_path / "Prüfling.png"
    source.write_bytes((photos / "crack.png").read_bytes())
    playground = Playground(session, find_images(source), tmp_path / "kept")
    _, (answer,) = playground.answer("Prüfling.png", None, None, 0.5, [Words("brick")])
    assert answer.scored.path.name == "Pr_fling.png"


def test_wrong_files_give_one_line(playground, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    notes = str(tmp_path / "notes.txt")
    image, answers = playground.answer("crack.png", None, [notes], 0.5, [Words("brick"), Words("gravel")])
    assert image == ""
    assert [text_of(each.page) for each in answers] == [
        "notes.txt cannot be a reference image, because its name is not that of an image file; remove it"
    ] * 2
    _, (answer,) = playground.answer("gone.png", None, None, 0.5, [Words("brick")])
    assert text_of(answer.page) == "there is no image yet; choose one, or drop one"
    playground.folder.parent.joinpath("kept").write_text("a file")
    _, (answer,) = playground.answer("crack.png", notes, None, 0.5, [Words("brick")])
    assert "kept" in text_of(answer.page)


def test_moving_the_threshold_needs_a_result(playground):
    _, (answer,) = playground.answer("crack.png", None, None, 0.5, [Words("brick")])
    assert "threshold 0.990" in text_of(playground.move(answer.scored, "A", 0.99))
    assert playground.move(None, "A", 0.99) is None


def test_result_says_what_was_found(session, photos):
    judged = judge(session.score(photos / "crack.png", Words("brick", "texture", defects=("paint", "plastic"))))
    page = render_result(judged, "A")
    assert page.count("data:image/jpeg") == 2
    assert text_of(page).startswith("A ABNORMAL score 0.849, threshold 0.500 paint 0.56, plastic 0.44")
    region = judged.description.regions[0].region
    x, y = (int((at + 0.5) * 128 / 96) for at in region.peak_at)
    assert f"1 paint 0.56, plastic 0.44 {region.peak:.2f} {100 * region.area / 96**2:.1f}% {x}, {y}" in text_of(page)


def test_abnormal_images_without_regions_show_the_highest_pixel(session, photos):
    scored = session.score(photos / "crack.png", Words("brick", "texture"))
    judged = judge(scored, 0.75)
    assert judged.content.label == "abnormal"
    assert "no pixel above the threshold; the circle is around the highest" in text_of(render_result(judged, "A"))
    assert "nothing found" in text_of(render_result(judge(scored, 0.99), "A"))


def test_many_regions_are_counted(session, photos):
    scored = session.score(photos / "crack.png", Words("brick", "texture"))
    spots = scored.anomaly_map.clone().fill_(0.1)
    spots[..., ::8, ::8] = 0.9
    assert "and 136 more" in text_of(render_result(judge(scored._replace(anomaly_map=spots)), "A"))


def test_words_are_only_text(session, photos):
    page = render_result(judge(session.score(photos / "crack.png", Words(HOSTILE))), "A")
    assert "<script" not in page
    assert HOSTILE in unescape(page)
    assert "<b>" not in render_error(f"{HOSTILE}\nsecond line")


def test_wide_and_tall_images_keep_their_shape(session, tmp_path):
    for size in ((300, 40), (40, 300)):
        path = tmp_path / f"{size[0]}.png"
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)
        assert render_result(judge(session.score(path, Words("brick"))), "A")


def test_large_images_are_kept_small_and_have_their_own_coordinates(session, photos, tmp_path):
    path = tmp_path / "large.png"
    Image.open(photos / "crack.png").resize((1024, 2048), Image.Resampling.BICUBIC).save(path)
    small, large = (session.score(each, Words("brick", "texture")) for each in (photos / "crack.png", path))
    assert large.size == (2048, 1024)
    assert large.pixels.shape == (896, 448, 3)
    assert float(large.score) == pytest.approx(float(small.score), abs=0.02)
    x, y = map(int, re.search(r"% (\d+), (\d+)", text_of(render_result(judge(large), "A"))).groups())
    left, top = judge(large).description.regions[0].region.peak_at
    assert (x, y) == (int((left + 0.5) * 1024 / 96), int((top + 0.5) * 2048 / 96))
    assert "1024 × 2048 pixels" in text_of(render_image(large, "large.png"))


def test_problems_of_others_are_told_with_their_type():
    assert explain_problem(ValueError("too long")) == "too long"
    assert explain_problem(RuntimeError("one\ntwo")) == "RuntimeError: one two"
    assert explain_problem(ValueError()) == "ValueError"
