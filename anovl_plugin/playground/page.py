"""The page of the playground: its layout, and what happens on which event. All else is elsewhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from anovl_plugin.components.thresholds.post_processor import DEFAULT_THRESHOLD
from anovl_plugin.playground.answers import NAMES, Playground
from anovl_plugin.playground.words import DOMAINS, Words, join_states

TITLE = "AnoVL playground"
STYLE = Path(__file__).with_name("page.css")
_TOY = " This small CLIP knows surfaces with obvious flaws and is not meant for inspection."
# Of the threshold.
_RANGE = 0.01, 0.99
_EVENT: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last", "show_progress": "minimal"}


class Form(NamedTuple):
    """The fields of a set of words, in the order of :meth:`Words.parse`."""

    class_name: gr.Textbox
    domain: gr.Dropdown
    normal_states: gr.Textbox
    abnormal_states: gr.Textbox
    defects: gr.Textbox


def theme() -> gr.themes.Base:
    """Return the look of the page, with fonts of the system."""
    sans, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(
        primary_hue="slate",
        neutral_hue="slate",
        spacing_size="sm",
        radius_size="sm",
        font=sans,
        font_mono=mono,
    )


class Images(NamedTuple):
    """What an image, and reference images, are chosen with."""

    choice: gr.Dropdown
    shown: gr.HTML
    dropped: gr.File
    references: gr.File


class Controls(NamedTuple):
    """What is said about all sets of words."""

    compare: gr.Checkbox
    run: gr.Button
    threshold: gr.Slider


class Side(NamedTuple):
    """A set of words, its result, and the columns that hold them."""

    form: Form
    words: gr.Column
    result: gr.HTML
    results: gr.Column
    state: gr.State


def build_page(playground: Playground, words: Words) -> gr.Blocks:
    """Return the page.

    Args:
        playground: What answers.
        words: What the forms start with.
    """
    session = playground.session
    model = f"{escape(session.backbone)}, {session.device}"
    toy = _TOY if session.backbone == "anovl-demo" else ""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        line = f"Change the words, and see what the model ({model}) makes of the image.{toy}"
        gr.HTML(f"<h1>{TITLE}</h1><p>{line}</p>", elem_id="head")
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                images = _build_images(list(playground.images))
            with gr.Column(scale=7, min_width=320):
                compare = gr.Checkbox(False, label="Compare two sets of words", elem_id="compare", container=False)
                with gr.Row():
                    forms = [_build_form(name, words) for name in NAMES]
                with gr.Row():
                    controls = Controls(compare, *_build_controls())
                with gr.Row():
                    results = [_build_result(name) for name in NAMES]
        sides = [Side(*form, *result, gr.State()) for form, result in zip(forms, results, strict=True)]
        _connect(page, playground, images, controls, sides)
    return page


def _connect(
    page: gr.Blocks, playground: Playground, images: Images, controls: Controls, sides: Sequence[Side]
) -> None:
    """Say what happens on which event."""

    def answer(
        choice: str, dropped: str, references: list[str], threshold: float, compare: bool, *fields: str
    ) -> tuple:
        """Return the image, and the state and the result of each set of words."""
        sets = [Words.parse(*fields[:5]), Words.parse(*fields[5:])][: 1 + compare]
        given = playground.answer(choice, dropped, references, threshold, sets)
        each = [*given.each, None, None][: len(NAMES)]
        scored = [None if one is None else one.scored for one in each]
        return given.image, *scored, *("" if one is None else one.page for one in each)

    def move(threshold: float, *scored: Any) -> list:
        """Return the results with another threshold; where there is none, what is there stays."""
        pages = [playground.move(each, name, threshold) for each, name in zip(scored, NAMES, strict=True)]
        return [gr.skip() if page is None else page for page in pages]

    first, second = sides
    states, results = [side.state for side in sides], [side.result for side in sides]
    entered = [images.choice, images.dropped, images.references, controls.threshold, controls.compare]
    entered += [*first.form, *second.form]
    shown = [images.shown, *states, *results]
    triggers = [page.load, controls.run.click, images.dropped.change, images.references.change]
    triggers += [field.submit for side in sides for field in (side.form.class_name, side.form.defects)]
    triggers += [side.form.domain.input for side in sides]
    gr.on(triggers, answer, entered, shown, **_EVENT)
    images.choice.input(lambda: None, None, images.dropped, **_EVENT).then(answer, entered, shown, **_EVENT)
    copied = gr.State()
    switched = [copied, first.form.class_name, second.words, second.results, *second.form]
    switch = controls.compare.input(_switch, [controls.compare, copied, *first.form, *second.form], switched, **_EVENT)
    switch.then(answer, entered, shown, **_EVENT)
    controls.threshold.change(move, [controls.threshold, *states], results, **_EVENT | {"show_progress": "hidden"})


def as_threshold(value: float | None) -> float:
    """Return the threshold that a slider means: the nearest one that is possible, and the default if there is none."""
    return DEFAULT_THRESHOLD if value is None else min(max(float(value), _RANGE[0]), _RANGE[1])


def _build_images(names: list[str]) -> Images:
    choice = gr.Dropdown(names, value=names[0], label="Image", visible=len(names) > 1, elem_id="choice")
    shown = gr.HTML(elem_id="image", apply_default_css=False)
    dropped = gr.File(label="An image of your own", height=80, elem_id="dropped")
    references = gr.File(label="Reference images", file_count="multiple", height=80, elem_id="references")
    return Images(choice, shown, dropped, references)


def _build_controls() -> tuple[gr.Button, gr.Slider]:
    run = gr.Button("Run", variant="primary", elem_id="run", scale=1, min_width=140)
    threshold = gr.Slider(
        *_RANGE,
        DEFAULT_THRESHOLD,
        step=0.01,
        label="Threshold: what scores higher is abnormal",
        info="Starts at 0.5, where normal and abnormal are equally likely.",
        elem_id="threshold",
        scale=4,
        min_width=260,
    )
    # While a number is typed, the field may be empty, which Gradio's own check does not survive.
    threshold.preprocess = as_threshold
    return run, threshold


def _build_form(name: str, words: Words) -> tuple[Form, gr.Column]:
    prefix = name.lower()
    with gr.Column(visible=name == NAMES[0], min_width=320, elem_id=f"words-{prefix}") as column:
        with gr.Row():
            class_name = gr.Textbox(
                words.class_name,
                label=_class_label(name, compare=name != NAMES[0]),
                max_lines=1,
                elem_id=f"class-{prefix}",
                scale=2,
                min_width=140,
            )
            domain = gr.Dropdown(
                list(DOMAINS), value=words.domain, label="Domain", elem_id=f"domain-{prefix}", scale=1, min_width=125
            )
        with gr.Row():
            states = [
                gr.Textbox(
                    join_states(texts),
                    label=f"{kind} states",
                    info="One a line; {} is the class.",
                    lines=4,
                    max_lines=7,
                    elem_id=f"{kind.lower()}-{prefix}",
                    min_width=130,
                )
                for kind, texts in (("Normal", words.normal_states), ("Abnormal", words.abnormal_states))
            ]
        defects = gr.Textbox(
            ", ".join(words.defects),
            label="Names of defects",
            placeholder="scratch, crack, missing part",
            max_lines=1,
            elem_id=f"defects-{prefix}",
        )
    return Form(class_name, domain, states[0], states[1], defects), column


def _class_label(name: str, *, compare: bool) -> str:
    return f"{name}: what the image shows" if compare else "What the image shows"


def _build_result(name: str) -> tuple[gr.HTML, gr.Column]:
    with gr.Column(visible=name == NAMES[0], min_width=320) as column:
        return gr.HTML(elem_id=f"result-{name.lower()}", apply_default_css=False), column


def _switch(compare: bool, copied: Sequence[str] | None, *fields: str) -> Sequence[Any]:
    """Show or hide the second set of words, a copy of the first until it is changed.

    Args:
        compare: Whether to show it.
        copied: What was last copied into it. Default: nothing yet.
        fields: The fields of both sets.
    """
    first, second = fields[:5], fields[5:]
    label = gr.Textbox(label=_class_label(NAMES[0], compare=compare))
    parts = [label, gr.Column(visible=compare), gr.Column(visible=compare)]
    if compare and (copied is None or tuple(copied) == second):
        return [first, *parts, *first]
    return [gr.skip(), *parts, *[gr.skip()] * len(second)]
