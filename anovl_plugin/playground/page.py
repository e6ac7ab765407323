"""The page of the playground: its layout, and what happens on which event. All else is elsewhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from anovl_plugin.components.post_processor import DEFAULT_THRESHOLD
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


def build_page(playground: Playground, words: Words) -> gr.Blocks:
    """Return the page.

    Args:
        playground: What answers.
        words: What the forms start with.
    """
    session, names = playground.session, list(playground.images)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        toy = _TOY if session.backbone == "anovl-demo" else ""
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Change the words, and see what the model ({escape(session.backbone)}, {session.device}) "
            f"makes of the image.{toy}</p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=260, elem_id="inputs"):
                choice = gr.Dropdown(
                    names, value=names[0], label="Image", visible=len(names) > 1, elem_id="choice", interactive=True
                )
                image = gr.HTML(elem_id="image", apply_default_css=False)
                dropped = gr.File(label="An image of your own", height=80, elem_id="dropped")
                references = gr.File(label="Reference images", file_count="multiple", height=80, elem_id="references")
            with gr.Column(scale=7, min_width=320):
                compare = gr.Checkbox(False, label="Compare two sets of words", elem_id="compare", container=False)
                with gr.Row(elem_id="words"):
                    forms, columns = zip(*(_build_form(name, words) for name in NAMES), strict=True)
                with gr.Row(elem_id="controls"):
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
                with gr.Row(elem_id="results"):
                    results, result_columns = zip(*map(_build_result, NAMES), strict=True)
        states = [gr.State() for _ in NAMES]

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

        entered = [choice, dropped, references, threshold, compare, *forms[0], *forms[1]]
        shown = [image, *states, *results]
        triggers = [page.load, run.click, dropped.change, references.change]
        triggers += [field.submit for form in forms for field in (form.class_name, form.defects)]
        triggers += [form.domain.input for form in forms]
        gr.on(triggers, answer, entered, shown, **_EVENT)
        choice.input(lambda: None, None, dropped, **_EVENT).then(answer, entered, shown, **_EVENT)
        switch = [forms[0].class_name, columns[1], result_columns[1], *forms[1]]
        compare.input(_switch, [compare, *forms[0]], switch, **_EVENT).then(answer, entered, shown, **_EVENT)
        threshold.change(move, [threshold, *states], results, **_EVENT | {"show_progress": "hidden"})
    return page


def as_threshold(value: float | None) -> float:
    """Return the threshold that a slider means: the nearest one that is possible, and the default if there is none."""
    return DEFAULT_THRESHOLD if value is None else min(max(float(value), _RANGE[0]), _RANGE[1])


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


def _switch(compare: bool, *fields: str) -> Sequence[Any]:
    """Show or hide the second set of words, which starts as a copy of the first."""
    label = gr.Textbox(label=_class_label(NAMES[0], compare=compare))
    copies = fields if compare else [gr.skip()] * len(fields)
    return [label, gr.Column(visible=compare), gr.Column(visible=compare), *copies]
