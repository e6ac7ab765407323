"""The picture of a result: the image, its anomaly map, what was found, and the verdict in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from anovl_plugin.components.pictures.color_scale import colorize
from anovl_plugin.components.pictures.lettering import load_font, shorten, wrap
from anovl_plugin.components.results.file_regions import find_peak

_INK, _PAPER, _QUIET = (20, 20, 20), (255, 255, 255), (95, 95, 95)
# Dark and light, so that they differ in gray, too.
_BANDS = {"abnormal": ((150, 0, 20), _PAPER), "normal": ((216, 236, 216), _INK), "": ((225, 225, 225), _INK)}
_WARNING = (255, 190, 0)
_FOUND, _TRUTH = (255, 225, 0), (255, 255, 255)
_MAP_ALPHA = 0.65
# Gray levels of the photograph under the map: few, so that white parts do not outshine the colors, but all in use.
_BRIGHTEST = 100
_LEAST_CONTRAST = 64
_TITLES = {
    "image": "image",
    "gt_mask": "ground truth",
    "pred_mask": "found",
    "anomaly_map": "anomaly map",
}


class Content(NamedTuple):
    """What a picture shows.

    Attributes:
        image: RGB, uint8, shape (H, W, 3); ``None`` if the file is gone.
        anomaly_map: Scores in [0, 1], shape (h, w); ``None`` if there is none.
        masks: Masks by name, ``pred_mask`` and ``gt_mask``, bool, shape (h, w).
        label: ``abnormal``, ``normal``, or empty if nothing was decided.
        ground_truth: The same, as it is known.
        score: Image score.
        threshold: Score above which an image is abnormal.
        pixel_threshold: Score above which a pixel is abnormal.
        class_name: Class that was asked for.
        explanation: Defect with its share, or any other words.
        name: Name of the image.
    """

    image: np.ndarray | None
    anomaly_map: np.ndarray | None
    masks: dict[str, np.ndarray]
    label: str = ""
    ground_truth: str = ""
    score: float | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    class_name: str = ""
    explanation: str = ""
    name: str = ""

    @property
    def marks_peak(self) -> bool:
        """Whether the image is abnormal and no pixel is, so that the map's peak is all there is to show."""
        mask = self.masks.get("pred_mask")
        return self.label == "abnormal" and self.anomaly_map is not None and (mask is None or not mask.any())


class Style(NamedTuple):
    """How a picture is drawn; the settings of anomalib's visualizer.

    Attributes:
        fields: Panels that show one thing.
        overlays: Panels that show some things over another.
        field_size: Width and height in pixels that a panel fits into.
        masks: Color, opacity and mode of each mask.
        map_alpha: Opacity of the anomaly map over an image.
        with_text: Whether there are a caption and titles.
        font: TrueType file.
        font_size: Height of a line in pixels.
    """

    fields: Sequence[str] = ("image",)
    overlays: Sequence[tuple[str, Sequence[str]]] = (
        ("image", ("anomaly_map",)),
        ("image", ("pred_mask", "gt_mask")),
    )
    field_size: tuple[int, int] = (384, 384)
    masks: dict[str, dict[str, Any]] = {}  # noqa: RUF012, nobody changes it
    map_alpha: float = _MAP_ALPHA
    with_text: bool = True
    font: str | None = None
    font_size: int | None = None

    @property
    def line(self) -> int:
        """Height of the text in pixels, about a 26th of a panel."""
        return self.font_size or max(13, max(self.field_size) // 26)


def draw_picture(content: Content, style: Style) -> Image.Image:
    """Return the picture of a result.

    Args:
        content: What to show.
        style: How to draw it.
    """
    size = _fit(content, style.field_size)
    panels = [
        (title, draw_panel(content, style, base, over, size), over)
        for title, base, over in _list_panels(content, style)
    ]
    if not style.with_text:
        return _join([panel for _, panel, _ in panels], style)
    # A narrow image has wider margins, so that titles fit.
    font, gap = load_font(style.line, style.font), style.line // 2
    cell = max(size[0], *(int(font.getlength(title)) + 1 for title, _, _ in panels), style.line * 15)
    width = len(panels) * cell + (len(panels) + 1) * gap
    caption = draw_caption(content, style, width)
    rest = Image.new("RGB", (width, size[1] + 5 * style.line + 2 * gap), _PAPER)
    draw = ImageDraw.Draw(rest)
    for index, (title, panel, over) in enumerate(panels):
        left = gap + index * (cell + gap)
        draw.text((left + cell // 2, gap), title, font=font, fill=_INK, anchor="ma")
        top = gap + int(1.5 * style.line)
        rest.paste(panel, (left + (cell - size[0]) // 2, top))
        box = (left, top + size[1] + gap // 2, left + cell, rest.height)
        if "anomaly_map" in over:
            _draw_scale(draw, rest, content, style, box)
        else:
            _draw_legend(draw, content, style, box, over)
    return _stack([caption, rest])


def draw_panel(content: Content, style: Style, base: str, over: Sequence[str], size: tuple[int, int]) -> Image.Image:
    """Return one panel.

    Args:
        content: What to show.
        style: How to draw it.
        base: ``image``, ``anomaly_map``, or a mask.
        over: What to draw over it.
        size: Width and height in pixels.
    """
    pixels = _base(content, base, size)
    for name in over:
        if name == "anomaly_map" and content.anomaly_map is not None:
            gray = _dim(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
            pixels = _mix(np.repeat(gray[..., None], 3, axis=2), _colors(content, size), style.map_alpha)
        elif name in content.masks:
            pixels = _draw_mask(pixels, content.masks[name], name, style)
    if content.marks_peak and over:
        _mark_peak(pixels, content, style)
    return Image.fromarray(pixels)


def draw_caption(content: Content, style: Style, width: int) -> Image.Image:
    """Return the verdict in words, with score, threshold, class and explanation, over the width of the picture."""
    background, ink = _BANDS[content.label]
    large = load_font(round(1.3 * style.line), style.font, bold=True)
    small = load_font(style.line, style.font)
    margin = style.line // 2
    room = width - 2 * margin - int(large.getlength(f"{describe_mistake(content)} "))
    lines = [(text, large) for text in wrap(describe_verdict(content), large, room)]
    for text in describe_details(content):
        lines += [(part, small) for part in wrap(text, small, width - 2 * margin)]
    if content.name:
        lines.append((shorten(content.name, small, width - 2 * margin), small))
    heights = [int(1.35 * font.size) for _, font in lines]
    band = Image.new("RGB", (width, sum(heights) + 2 * margin), background)
    draw, top = ImageDraw.Draw(band), margin
    for (text, font), height in zip(lines, heights, strict=True):
        draw.text((margin, top), text, font=font, fill=ink)
        top += height
    mistake = describe_mistake(content)
    if mistake:
        length = int(large.getlength(mistake)) + 2 * margin
        draw.rectangle((width - length, 0, width, heights[0] + margin), fill=_WARNING)
        draw.text((width - length // 2, margin), mistake, font=large, fill=_INK, anchor="ma")
    return band


def describe_verdict(content: Content) -> str:
    """Return the verdict in words, and what the ground truth says of it."""
    if not content.label:
        return "No verdict"
    verdict = content.label.upper()
    if not content.ground_truth:
        return verdict
    if content.ground_truth == content.label:
        return f"{verdict}, as the ground truth"
    return f"{verdict}, but the ground truth is {content.ground_truth}"


def describe_mistake(content: Content) -> str:
    """Return what a wrong verdict is called; an empty text if it is not known to be wrong."""
    if not (content.label and content.ground_truth) or content.label == content.ground_truth:
        return ""
    return "FALSE ALARM" if content.label == "abnormal" else "MISSED"


def describe_details(content: Content) -> list[str]:
    """Return score and threshold, class and explanation, each in words."""
    parts = []
    if content.score is not None:
        # As many digits as it takes to tell them apart.
        score, threshold = (f"{each:.3f}" for each in (content.score, content.threshold or 0))
        if score == threshold:
            score, threshold = (f"{each:.6f}" for each in (content.score, content.threshold or 0))
        parts.append(f"score {score}" if content.threshold is None else f"score {score}, threshold {threshold}")
    if content.class_name:
        parts.append(f"asked for: {content.class_name}")
    details = [" · ".join(parts)] if parts else []
    # Of a normal image there is nothing to explain.
    if content.explanation and content.label != "normal":
        details.append(content.explanation)
    if content.image is None:
        details.append("The image file can no longer be read.")
    return details


def _list_panels(content: Content, style: Style) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return title, base and overlays of the panels for which there is something to show."""
    panels: list[tuple[str, str, tuple[str, ...]]] = []
    panels += [(_TITLES.get(name, name), name, ()) for name in style.fields if _has(content, name)]
    for base, over in style.overlays:
        shown = tuple(name for name in over if _has(content, name))
        if shown and _has(content, base):
            panels.append((_TITLES.get(shown[0], shown[0]), base, shown))
    return panels or [("image", "image", ())]


def _has(content: Content, name: str) -> bool:
    return name == "image" or name in content.masks or (name == "anomaly_map" and content.anomaly_map is not None)


def _fit(content: Content, field: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of a panel that fits into ``field`` and has the image's aspect ratio."""
    shown = content.image if content.image is not None else content.anomaly_map
    height, width = (1, 1) if shown is None else shown.shape[:2]
    factor = min(field[0] / width, field[1] / height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _base(content: Content, name: str, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels that a panel starts from, uint8, shape (height, width, 3)."""
    if name == "anomaly_map":
        return _colors(content, size)
    if name in content.masks:
        plane = _resize_mask(content.masks[name], size).astype(np.uint8) * 255
        return np.repeat(plane[..., None], 3, axis=2)
    if content.image is None:
        return np.full((size[1], size[0], 3), 128, np.uint8)
    return np.array(Image.fromarray(content.image).resize(size, Image.Resampling.LANCZOS))


def _colors(content: Content, size: tuple[int, int]) -> np.ndarray:
    assert content.anomaly_map is not None
    values = cv2.resize(content.anomaly_map.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return colorize(values, content.pixel_threshold)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5


def _dim(gray: np.ndarray) -> np.ndarray:
    """Return a photograph (H, W) from black to dark gray, with as much of its contrast as that leaves room for."""
    low, high = (float(each) for each in np.percentile(gray, (1, 99)))
    middle, half = (low + high) / 2, max(high - low, _LEAST_CONTRAST) / 2
    return _BRIGHTEST * ((gray - middle) / (2 * half) + 0.5).clip(0, 1)


def _mix(below: np.ndarray, above: np.ndarray, alpha: float) -> np.ndarray:
    return np.rint(below * (1 - alpha) + above * alpha).astype(np.uint8)


def _draw_mask(pixels: np.ndarray, mask: np.ndarray, name: str, style: Style) -> np.ndarray:
    settings: dict[str, Any] = {"color": _TRUTH if name == "gt_mask" else _FOUND, "alpha": 1.0, "mode": "contour"}
    settings |= style.masks.get(name, {})
    shape = _resize_mask(mask, (pixels.shape[1], pixels.shape[0]))
    drawn, color = pixels.copy(), tuple(settings["color"])
    if settings["mode"] == "fill":
        drawn[shape] = color
    else:
        contours, _ = cv2.findContours(shape.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        width = _stroke(style)
        # A black edge keeps the line visible on any image.
        if name == "gt_mask":
            for contour in contours:
                for point in contour[:: 4 * width, 0]:
                    place = int(point[0]), int(point[1])
                    cv2.circle(drawn, place, width, (0, 0, 0), -1, cv2.LINE_AA)
                    cv2.circle(drawn, place, width - 1, color, -1, cv2.LINE_AA)
        else:
            cv2.drawContours(drawn, contours, -1, (0, 0, 0), width + 2, cv2.LINE_AA)
            cv2.drawContours(drawn, contours, -1, color, width, cv2.LINE_AA)
    return _mix(pixels, drawn, settings["alpha"])


def _mark_peak(pixels: np.ndarray, content: Content, style: Style) -> None:
    assert content.anomaly_map is not None
    peak = find_peak(content.anomaly_map, pixels.shape[:2])
    radius, width = max(8, style.line), _stroke(style)
    for color, thickness in (((0, 0, 0), width + 2), (_FOUND, width)):
        cv2.circle(pixels, (peak.x, peak.y), radius, color, thickness, cv2.LINE_AA)
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            start = peak.x + dx * radius, peak.y + dy * radius
            stop = peak.x + dx * 3 * radius // 2, peak.y + dy * 3 * radius // 2
            cv2.line(pixels, start, stop, color, thickness, cv2.LINE_AA)


def _stroke(style: Style) -> int:
    return max(1, round(max(style.field_size) / 150))


def _draw_scale(
    draw: ImageDraw.ImageDraw, picture: Image.Image, content: Content, style: Style, box: tuple[int, int, int, int]
) -> None:
    """Draw the colors from 0 to 1 with the threshold marked."""
    font = load_font(style.line, style.font)
    left, top, right, _ = box
    left, right, height = left + style.line, right - style.line, max(6, style.line // 2)
    colors = colorize(np.linspace(0, 1, right - left), content.pixel_threshold)
    picture.paste(Image.fromarray(np.repeat(colors[None], height, axis=0)), (left, top))
    below = top + height + style.line // 4
    draw.text((left, below), "0", font=font, fill=_QUIET, anchor="ma")
    draw.text((right, below), "1", font=font, fill=_QUIET, anchor="ma")
    if content.pixel_threshold is not None:
        middle = left + round((right - left) * content.pixel_threshold)
        draw.line([(middle, top - 3), (middle, top + height + 3)], fill=_PAPER, width=3 * _stroke(style) + 2)
        draw.line([(middle, top - 3), (middle, top + height + 3)], fill=(0, 0, 0), width=_stroke(style) + 1)
        text = shorten(f"threshold {content.pixel_threshold:.2f}", font, right - left - 2 * style.line)
        half = int(font.getlength(text)) // 2 + style.line
        place = min(max(middle, left + half), right - half)
        draw.text((place, below), text, font=font, fill=_INK, anchor="ma")
    peak = "" if content.anomaly_map is None else f"highest pixel {float(content.anomaly_map.max()):.2f}"
    draw.text(((left + right) // 2, below + int(1.3 * style.line)), peak, font=font, fill=_QUIET, anchor="ma")


def _draw_legend(
    draw: ImageDraw.ImageDraw, content: Content, style: Style, box: tuple[int, int, int, int], over: Sequence[str]
) -> None:
    """Write what the marks of a panel mean."""
    lines = []
    if content.marks_peak and over:
        lines += ["no pixel above the threshold", "circle: the highest pixel"]
    elif "pred_mask" in over:
        mask = content.masks["pred_mask"]
        lines.append(f"line: found, {mask.mean():.1%} of the image" if mask.any() else "nothing found")
    if "gt_mask" in over and content.masks["gt_mask"].any():
        lines.append("dots: ground truth")
    font, top = load_font(style.line, style.font), box[1]
    for text in lines:
        fitting = shorten(text, font, box[2] - box[0])
        draw.text(((box[0] + box[2]) // 2, top), fitting, font=font, fill=_QUIET, anchor="ma")
        top += int(1.3 * style.line)


def _join(panels: list[Image.Image], style: Style) -> Image.Image:
    gap = style.line // 2
    width = sum(panel.width + gap for panel in panels) - gap
    picture = Image.new("RGB", (width, max(panel.height for panel in panels)), _PAPER)
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + gap
    return picture


def _stack(parts: list[Image.Image]) -> Image.Image:
    picture = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), _PAPER)
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture
