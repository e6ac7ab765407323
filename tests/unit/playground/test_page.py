"""The page of the playground as Gradio has it; tests/integration/test_playground.py uses it in a browser."""

from urllib.request import urlopen

import pytest

from anovl_plugin.playground.answers import Playground
from anovl_plugin.playground.images import find_images
from anovl_plugin.playground.server import HOST, be_quiet, find_port, launch
from anovl_plugin.playground.session import Session
from anovl_plugin.playground.words import NORMAL_STATES, Words

WORDS = Words("brick", "texture", defects=("paint", "plastic"))


@pytest.fixture(scope="module")
def built(photos, tmp_path_factory):
    """Return the module of the page, and a page on photographs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
            patch.setenv(name, "")
        be_quiet(str(tmp_path_factory.mktemp("uploads")))
        pytest.importorskip("gradio", reason='needs Gradio (pip install "anovl_plugin[playground]")')
        from anovl_plugin.playground import page

        playground = Playground(Session("anovl-demo"), find_images(photos), tmp_path_factory.mktemp("kept"))
        return page, page.build_page(playground, WORDS)


def handlers(built):
    return {block.fn.__name__: block.fn for block in built[1].fns.values() if block.fn is not None}


def fields(class_name="brick", defects="paint"):
    return class_name, "texture", "\n".join(NORMAL_STATES), "damaged {}", defects


def test_forms_start_with_the_words(built):
    config = built[1].get_config_file()
    values = {part["props"].get("elem_id"): part["props"].get("value") for part in config["components"]}
    for name in ("a", "b"):
        assert values[f"class-{name}"] == "brick"
        assert values[f"domain-{name}"] == "texture"
        assert values[f"normal-{name}"] == "\n".join(NORMAL_STATES)
        assert values[f"defects-{name}"] == "paint, plastic"
    assert (values["choice"], values["threshold"], values["compare"]) == ("crack.png", 0.5, False)


def test_programs_cannot_call_the_page(built):
    assert {block.api_visibility for block in built[1].fns.values()} == {"private"}


def test_one_set_of_words_is_answered_unless_two_are_compared(built):
    answer = handlers(built)["answer"]
    entered = ("crack.png", None, None, 0.5)
    image, first, second, page, other = answer(*entered, False, *fields(), *fields("wall"))
    assert "crack.png" in image
    assert first.settings.words.class_name == "brick"
    assert "about “brick”" in page
    assert (second, other) == (None, "")
    *_, second, page, other = answer(*entered, True, *fields(), *fields("wall"))
    assert second.settings.words.class_name == "wall"
    assert "about “wall”" in other


def test_threshold_moves_what_there_is(built):
    _, first, second, _, _ = handlers(built)["answer"]("crack.png", None, None, 0.5, False, *fields(), *fields())
    page, other = handlers(built)["move"](0.98, first, second)
    assert "threshold 0.980" in page
    assert other == built[0].gr.skip()


def test_second_set_starts_as_a_copy(built):
    copied, label, form, result, *copies = built[0]._switch(True, None, *fields("wall"), *fields())
    assert copied == tuple(copies) == fields("wall")
    assert label.label.startswith("A: ")
    assert form.visible
    assert result.visible
    copied, label, form, result, *copies = built[0]._switch(False, fields("wall"), *fields("wall"), *fields("wall"))
    assert [copied, *copies] == [built[0].gr.skip()] * 6
    assert not form.visible
    assert label.label == "What the image shows"


def test_second_set_is_copied_again_unless_it_was_changed(built):
    skip = built[0].gr.skip()
    copied, *_ = built[0]._switch(True, fields("wall"), *fields("floor"), *fields("wall"))
    assert copied == fields("floor")
    copied, _, form, _, *copies = built[0]._switch(True, fields("wall"), *fields("floor"), *fields("gravel"))
    assert [copied, *copies] == [skip] * 6
    assert form.visible


@pytest.mark.parametrize(("value", "threshold"), [(None, 0.5), (0, 0.01), (7, 0.99), (0.3, 0.3)])
def test_every_number_means_a_threshold(built, value, threshold):
    assert built[0].as_threshold(value) == threshold


def test_fonts_are_those_of_the_system(built):
    css = built[0].theme()._get_theme_css()
    assert "system-ui" in css
    assert css.count("url(") == css.count('url("data:')
    assert "@font-face" not in css


def test_page_is_served_however_slow_the_machine_is(built, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, HOST)
    monkeypatch.setattr("gradio.networking.url_ok", lambda _: False)
    with built[0].gr.Blocks(title="slow", analytics_enabled=False) as page:
        pass
    try:
        with urlopen(launch(page, find_port(0))) as answer:  # noqa: S310
            assert b"slow" in answer.read()
    finally:
        page.close(verbose=False)
