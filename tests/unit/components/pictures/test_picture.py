"""Pictures of results, and the text in them."""

import numpy as np
import pytest
from PIL import Image

from anovl_plugin.components.pictures.color_scale import colorize
from anovl_plugin.components.pictures.lettering import load_font, shorten, wrap
from anovl_plugin.components.pictures.picture import (
    Content,
    Style,
    describe_details,
    describe_mistake,
    describe_verdict,
    draw_picture,
)

FOUND = (255, 225, 0)


def content(size: tuple[int, int] = (100, 100), **changes) -> Content:
    anomaly_map = np.full((20, 20), 0.2, np.float32)
    anomaly_map[4:8, 10:16] = 0.8
    made = Content(
        np.full((*size, 3), 90, np.uint8), anomaly_map, {"pred_mask": anomaly_map > 0.5}, "abnormal", "", 0.8, 0.5, 0.5
    )
    return made._replace(**changes)


def panels_of(shown: Content, count: int = 3) -> list[np.ndarray]:
    """Return the panels of a picture of a square image."""
    pixels = np.asarray(draw_picture(shown, Style(with_text=False)))
    step = 384 + Style().line // 2
    return [pixels[:, index * step : index * step + 384] for index in range(count)]


@pytest.mark.parametrize(
    ("label", "truth", "verdict", "mistake"),
    [
        ("abnormal", "", "ABNORMAL", ""),
        ("normal", "", "NORMAL", ""),
        ("abnormal", "abnormal", "ABNORMAL, as the ground truth", ""),
        ("normal", "normal", "NORMAL, as the ground truth", ""),
        ("normal", "abnormal", "NORMAL, but the ground truth is abnormal", "MISSED"),
        ("abnormal", "normal", "ABNORMAL, but the ground truth is normal", "FALSE ALARM"),
        ("", "", "No verdict", ""),
        ("", "normal", "No verdict", ""),
    ],
)
def test_verdict_in_words(label, truth, verdict, mistake):
    shown = content(label=label, ground_truth=truth)
    assert describe_verdict(shown) == verdict
    assert describe_mistake(shown) == mistake
    draw_picture(shown, Style())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"class_name": "brick"}, ["score 0.800, threshold 0.500 · asked for: brick"]),
        ({"threshold": None}, ["score 0.800"]),
        ({"score": 0.50004}, ["score 0.500040, threshold 0.500000"]),
        ({"explanation": "crack 71 %"}, ["score 0.800, threshold 0.500", "crack 71 %"]),
        ({"explanation": "crack 71 %", "label": "normal"}, ["score 0.800, threshold 0.500"]),
        ({"image": None, "score": None}, ["The image file can no longer be read."]),
    ],
)
def test_details(changes, expected):
    assert describe_details(content(**changes)) == expected


@pytest.mark.parametrize(("height", "width"), [(100, 100), (400, 50), (50, 400), (1, 300), (300, 1)])
@pytest.mark.parametrize("field", [256, 384, 2000])
def test_panels_keep_the_aspect_ratio(height, width, field):
    style = Style(field_size=(field, field), with_text=False)
    picture = draw_picture(content((height, width)), style)
    factor = field / max(height, width)
    gaps = 2 * (style.line // 2)
    assert picture.height == max(1, round(height * factor))
    assert picture.width == 3 * max(1, round(width * factor)) + gaps


def test_narrow_images_have_room_for_their_titles():
    assert draw_picture(content((400, 20)), Style()).width > 3 * load_font(15).getlength("no pixel above the threshold")


@pytest.mark.parametrize("field", [256, 384, 2000])
def test_text_grows_with_the_panels(field):
    assert Style(field_size=(field, field)).line == max(13, field // 26)


def test_normal_images_are_dark_and_abnormal_pixels_bright():
    """On a fixed scale: a map without an anomaly must not look like one, however it varies."""
    calm = content(anomaly_map=np.linspace(0.2, 0.3, 400, dtype=np.float32).reshape(20, 20), label="normal")
    calm = calm._replace(masks={"pred_mask": np.zeros((20, 20), bool)})
    _, quiet, _ = panels_of(calm)
    _, loud, _ = panels_of(content())
    gray = [np.asarray(Image.fromarray(panel).convert("L"), float) for panel in (quiet, loud)]
    assert gray[0].max() < 80
    assert gray[1][90:140, 210:290].mean() > 120


def halves_in_gray(shades: tuple[int, int], values: tuple[float, float]) -> tuple[float, float]:
    """Return the gray values of a map over a photograph, each of two halves."""
    image, anomaly_map = np.zeros((100, 100, 3), np.uint8), np.zeros((20, 20), np.float32)
    image[:, :50], image[:, 50:] = shades
    anomaly_map[:, :10], anomaly_map[:, 10:] = values
    _, panel = panels_of(content(image=image, anomaly_map=anomaly_map, masks={}, label="normal"), 2)
    gray = np.asarray(Image.fromarray(panel).convert("L"), float)
    return float(gray[:, :150].mean()), float(gray[:, -150:].mean())


@pytest.mark.parametrize("dark", [0, 128, 200, 255])
@pytest.mark.parametrize("light", [0, 128, 200, 255])
def test_the_map_orders_pixels_whatever_the_photograph(dark, light):
    """A dark part that is abnormal stands out from a white one that is normal."""
    abnormal, normal = halves_in_gray((dark, light), (0.9, 0.1))
    assert abnormal > 2 * normal
    assert normal < 55
    for value in (0.3, 0.5, 0.7, 0.9):
        higher, lower = halves_in_gray((dark, light), (value, value - 0.3))
        assert higher > lower


def test_a_photograph_of_little_contrast_can_be_seen_under_the_map():
    one, other = halves_in_gray((220, 250), (0.2, 0.2))
    assert other - one > 10
    one, other = halves_in_gray((250, 250), (0.2, 0.2))
    assert abs(other - one) < 1


def test_outline_surrounds_what_was_found():
    *_, panel = panels_of(content())
    rows, columns = np.nonzero((panel == FOUND).all(-1))
    scale = 384 / 20
    assert (rows.min(), rows.max()) == pytest.approx((4 * scale, 8 * scale), abs=6)
    assert (columns.min(), columns.max()) == pytest.approx((10 * scale, 16 * scale), abs=6)


def test_peak_is_marked_where_an_abnormal_image_has_an_empty_mask():
    empty = {"pred_mask": np.zeros((20, 20), bool)}
    for panel in panels_of(content(masks=empty))[1:]:
        rows, columns = np.nonzero((panel == FOUND).all(-1))
        assert ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2) == pytest.approx((86, 201), abs=3)
    for shown in (content(masks=empty, label="normal"), content(masks=empty, anomaly_map=None)):
        assert not any((panel == FOUND).all(-1).any() for panel in panels_of(shown, 2))


def test_colors_can_be_read_in_gray():
    shades = np.asarray(Image.fromarray(colorize(np.linspace(0, 1, 256))[None]).convert("L"), int)[0]
    assert (np.diff(shades) >= -1).all()
    assert shades[-1] - shades[0] > 200


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_threshold_has_always_the_same_color(threshold):
    assert colorize(np.array(threshold), threshold).tolist() == colorize(np.array(0.5)).tolist()
    assert colorize(np.array([0.0, 1.0]), threshold).tolist() == colorize(np.array([0.0, 1.0])).tolist()


def test_settings_of_the_panels():
    masks = {"pred_mask": np.ones((20, 20), bool), "gt_mask": np.zeros((20, 20), bool)}
    style = Style(
        fields=("image", "gt_mask", "pred_mask", "anomaly_map"),
        overlays=(("image", ("pred_mask",)),),
        field_size=(60, 60),
        masks={"pred_mask": {"color": (1, 2, 3), "mode": "fill", "alpha": 0.5}},
        with_text=False,
    )
    picture = np.asarray(draw_picture(content(masks=masks), style))
    assert picture.shape == (60, 5 * 60 + 4 * (13 // 2), 3)
    panels = [picture[:, index * 66 : index * 66 + 60] for index in range(5)]
    assert [panel[30, 30].tolist() for panel in panels[:3]] == [[90] * 3, [0] * 3, [255] * 3]
    assert panels[4][30, 30].tolist() == [46, 46, 46]


def test_fields_that_are_not_there_are_left_out():
    bare = Content(np.zeros((10, 10, 3), np.uint8), None, {})
    style = Style(field_size=(60, 60), with_text=False)
    assert draw_picture(bare, style).size == (60, 60)
    assert draw_picture(bare, style._replace(fields=("gt_mask",))).size == (60, 60)


@pytest.mark.parametrize("text", ["short", "a" * 200, "line1/cam0/" + "x" * 90 + "/000.png", ""])
@pytest.mark.parametrize("width", [40, 100, 300])
def test_text_fits(text, width):
    font = load_font(15)
    fitting = shorten(text, font, width)
    assert font.getlength(fitting) <= width
    assert fitting == text or "…" in fitting
    assert all(font.getlength(line) <= width for line in wrap(f"{text} and {text}", font, width))


def test_shortened_names_keep_their_ends():
    font = load_font(15)
    fitting = shorten("line1/" + "x" * 90 + "/000.png", font, 150)
    assert fitting.startswith("line1/x")
    assert fitting.endswith("000.png")


def test_wrapped_text_is_all_there():
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    lines = wrap(" ".join(words), load_font(15), 100)
    assert len(lines) > 2
    assert " ".join(lines).split() == words


def test_unknown_font():
    with pytest.raises(OSError, match="cannot open"):
        load_font(15, "/nowhere/font.ttf")
