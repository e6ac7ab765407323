"""Results as HTML: verdict, pictures, regions, and what reproduces them."""

import base64
import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from PIL import Image

from anovl_plugin.components.pictures.color_scale import colorize
from anovl_plugin.components.pictures.picture import Style, describe_details, draw_panel
from anovl_plugin.components.results.file_regions import place_peak
from anovl_plugin.playground.reproduce import YAML_NAME, to_command, to_yaml
from anovl_plugin.playground.session import Judged, Scored
from anovl_plugin.scoring.description import NamedRegion, explain

# Longest side of a picture in pixels, and its quality as a JPEG file.
_SIDE, _QUALITY = 448, 88
_MOST_ROWS = 8
_HERE = Path(__file__).parent


class Row(NamedTuple):
    """A region as a row of a table.

    Attributes:
        what: What it is called; empty if it has no name.
        peak: Its highest score.
        share: Its share of the image, in [0, 1].
        x: Column of its highest pixel in the image.
        y: Row of its highest pixel.
        left: Where its upper left corner is, as a share of the width.
        top: The same of the height.
    """

    what: str
    peak: float
    share: float
    x: int
    y: int
    left: float
    top: float


def render_result(judged: Judged, name: str, accelerator: str = "cpu") -> str:
    """Return a result as HTML.

    Args:
        judged: The result.
        name: What the words are called, such as ``A``.
        accelerator: What the model runs on, for what reproduces the result. Default: ``cpu``.
    """
    content, scored = judged.content, judged.scored
    size = _fit(scored.size[1], scored.size[0])
    pictures = [_encode(draw_panel(content, Style(), "image", (over,), size)) for over in ("anomaly_map", "pred_mask")]
    rows = [_row(each, judged) for each in judged.description.regions]
    config = base64.b64encode(to_yaml(judged, accelerator).encode()).decode()
    (details, *_) = describe_details(content)
    assert content.anomaly_map is not None
    return _template("result.html.jinja").render(
        name=name,
        label=content.label,
        details=details,
        explanation=explain(judged.description.shares) if content.label == "abnormal" else "",
        class_name=scored.settings.words.class_name,
        domain=scored.domain,
        sentences=scored.sentences,
        references=0 if scored.settings.references is None else len(list(scored.settings.references.iterdir())),
        milliseconds=round(scored.milliseconds),
        pictures=pictures,
        scale=_encode(Image.fromarray(colorize(np.linspace(0, 1, 256), judged.threshold)[None]), "PNG"),
        threshold=judged.threshold,
        highest=float(content.anomaly_map.max()),
        marks_peak=content.marks_peak,
        found=float(content.masks["pred_mask"].mean()),
        rows=rows[:_MOST_ROWS],
        more=max(0, len(rows) - _MOST_ROWS),
        notes=scored.notes,
        config=config,
        config_name=YAML_NAME,
        command=to_command(judged, accelerator),
    )


def render_image(scored: Scored, name: str) -> str:
    """Return the image that was scored as HTML, with its name and size."""
    height, width = scored.size
    picture = Image.fromarray(scored.pixels).resize(_fit(width, height), Image.Resampling.LANCZOS)
    return _template("image.html.jinja").render(picture=_encode(picture), name=name, width=width, height=height)


def render_error(message: str) -> str:
    """Return what went wrong as HTML: one line."""
    return _template("error.html.jinja").render(message=" ".join(message.split()))


@cache
def _template(name: str) -> Template:
    loader = FileSystemLoader(_HERE)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def _row(named: NamedRegion, judged: Judged) -> Row:
    scored, region = judged.scored, named.region
    height, width = scored.anomaly_map.shape[-2:]
    peak = place_peak(region.peak_at, region.peak, (height, width), scored.size)
    left, top = region.box[0] / width, region.box[1] / height
    share = region.area / (height * width)
    return Row(explain(named.shares), region.peak, share, peak.x, peak.y, left, top)


def _fit(width: int, height: int) -> tuple[int, int]:
    factor = _SIDE / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _encode(picture: Image.Image, kind: str = "JPEG") -> str:
    """Return a picture as an address that holds it."""
    stream = io.BytesIO()
    picture.save(stream, kind, quality=_QUALITY)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
