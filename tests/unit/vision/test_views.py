"""Views against the slow reference, each by itself too, and how a score is added up over them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.scoring.image_score import sum_over_views
from anovl_plugin.vision.views import PAPER, SINGLE, identity, parse_view, parse_views
from tests.helpers import reference_views
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import EXACT, FLOAT32, FLOAT64, REFERENCE, RESAMPLED

OWN = ["flip", "rotate 22.5", "image", "translate -0.3 0.1", "gray"]
WORDS = "not one of: image, rotate DEGREES, translate X Y, flip, gray$"


def view_of(text, image):
    return parse_view(text)(image[None])[0].double()


def dot_at(row, column, side=11):
    image = torch.zeros(1, 1, side, side)
    image[..., row, column] = 1
    return image


def brightest(images):
    return divmod(int(images[0, 0].argmax()), images.shape[-1])


def score_of(images):
    """Score images one by one, and views of the same image apart."""
    rows = torch.linspace(-1, 1, images.shape[-2])[:, None]
    columns = torch.linspace(1, 3, images.shape[-1])
    return (images.float() * rows * columns).mean((1, 2, 3)).tanh()


def looped(images, views):
    """Add up the score over views, one image and one view at a time."""
    return torch.stack([sum(score_of(view(image[None]))[0] for view in views) for image in images])


class Spy:
    """A score that records its inputs."""

    def __init__(self):
        self.parts, self.autocast = [], []

    def __call__(self, images):
        self.parts.append(images)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return score_of(images)

    @property
    def lengths(self):
        return [len(part) for part in self.parts]


@pytest.mark.parametrize("angle", [0.0, 0.3, -0.7, 2.0])
def test_the_reference_samples_as_torch_does(angle):
    image = noise(3, 12, 12).double()
    cos, sin = math.cos(angle), math.sin(angle)
    theta = [[cos, -sin, 0.4], [0.8 * sin, cos, -1.1]]
    grid = F.affine_grid(torch.tensor([theta], dtype=torch.float64), [1, 3, 12, 12], align_corners=True)
    expected = F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=True)[0]
    assert_close(reference_views.warp(image, theta), expected, **FLOAT64)


@pytest.mark.parametrize("side", [16, 21])
def test_the_papers_views_are_those_of_the_reference(side):
    image = noise(3, side, side)
    views = torch.stack([view(image[None])[0] for view in parse_views("paper")]).double()
    expected = reference_views.views(image)
    assert views.shape == expected.shape == (22, 3, side, side)
    alike = torch.cdist(views.flatten(1), expected.flatten(1), p=math.inf) < RESAMPLED["atol"]
    assert (alike.sum(0) == 1).all()
    assert (alike.sum(1) == 1).all()


def test_the_papers_views_are_22_different_ones():
    assert len(parse_views("paper")) == len(PAPER) == 22
    found = {(word, *map(float, numbers)) for word, *numbers in map(str.split, PAPER)}
    angles = [sign * degrees for degrees in (11.25, 22.5, 33.75, 45) for sign in (1, -1)]
    expected = {("rotate", degrees) for degrees in [*angles, 90, 180, 270]}
    expected |= {("translate", x * step, y * step) for step in (0.1, 0.2) for x in (1, -1) for y in (1, -1)}
    assert found == expected | {("image",), ("flip",), ("gray",)}


def test_a_single_view_is_the_image_itself():
    assert SINGLE == ("image",)
    assert parse_views("single") == parse_views(["image"]) == (identity,)
    image = noise(1, 3, 8, 8)
    assert identity(image) is image


@pytest.mark.parametrize("degrees", [0, 11.25, -11.25, 22.5, -22.5, 33.75, -33.75, 45, -45, 100, -170])
def test_rotate_turns_anti_clockwise(degrees):
    image = noise(3, 16, 16)
    expected = reference_views.turned(image, math.radians(degrees))
    assert_close(view_of(f"rotate {degrees}", image), expected, **RESAMPLED)


@pytest.mark.parametrize(("degrees", "place"), [(0, (5, 9)), (90, (1, 5)), (180, (5, 1)), (270, (9, 5)), (-90, (9, 5))])
def test_a_dot_on_the_right_goes_up_and_round(degrees, place):
    assert brightest(parse_view(f"rotate {degrees}")(dot_at(5, 9))) == place


@pytest.mark.parametrize(("degrees", "place"), [(45, (2, 8)), (-45, (8, 8))])
def test_a_dot_goes_to_the_side_that_the_sign_says(degrees, place):
    assert brightest(parse_view(f"rotate {degrees}")(dot_at(5, 9))) == place


@pytest.mark.parametrize("side", [2, 15, 32])
@pytest.mark.parametrize("turns", [1, 2, 3, -1, 4])
def test_right_angles_are_those_of_torch(turns, side):
    images = noise(2, 3, side, side)
    assert_close(parse_view(f"rotate {90 * turns}")(images), torch.rot90(images, turns, (2, 3)), **RESAMPLED)


@pytest.mark.parametrize("x", [0.2, -0.2, 0.1, 0.0])
@pytest.mark.parametrize("y", [0.2, -0.1, -1.5, 2.0])
def test_translate_moves_by_fractions_of_half_the_size(x, y):
    image = noise(3, 16, 16)
    assert_close(view_of(f"translate {x} {y}", image), reference_views.moved(image, x, y), **RESAMPLED)


@pytest.mark.parametrize(("x", "y", "place"), [(0.4, 0, (5, 7)), (0, 0.4, (7, 5)), (-0.2, 0.6, (8, 4))])
def test_translate_moves_to_the_right_and_down(x, y, place):
    moved = parse_view(f"translate {x} {y}")(dot_at(5, 5))
    assert_close(moved, dot_at(*place), **RESAMPLED)


def test_what_comes_in_over_the_border_is_mirrored_without_repeating_it():
    image = torch.arange(5.0).expand(1, 1, 5, 5)
    moved = parse_view("translate 1 0")(image)
    assert_close(moved[0, 0], torch.tensor([2.0, 1, 0, 1, 2]).expand(5, 5), **RESAMPLED)


def test_flip_is_left_to_right():
    image = noise(3, 9, 9)
    assert torch.equal(view_of("flip", image), reference_views.flipped(image))
    assert_close(view_of("flip", image), image.flip(-1).double(), **EXACT)


def test_gray_weighs_red_green_and_blue():
    image = noise(3, 9, 9)
    assert_close(view_of("gray", image), reference_views.gray(image), **FLOAT32)
    colors = torch.eye(3)[:, :, None, None]
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert_close(parse_view("gray")(colors), weights[:, None, None, None].expand(3, 3, 1, 1))


@pytest.mark.parametrize("size", [(12, 20), (20, 12), (1, 9)])
def test_images_that_are_not_square_keep_their_size(size):
    images = noise(2, 3, *size)
    for view in parse_views("paper"):
        assert view(images).shape == images.shape
    assert_close(parse_view("rotate 180")(images), images.flip(-2, -1), **RESAMPLED)


def test_half_of_width_and_height_are_counted_apart():
    image = torch.zeros(1, 1, 11, 21)
    image[..., 5, 10] = 1
    moved = parse_view("translate 0.2 0.4")(image)
    assert moved[0, 0, 7, 12] == pytest.approx(1, abs=1e-5)


def test_what_is_not_square_is_turned_and_not_sheared():
    image = torch.zeros(1, 1, 11, 21)
    image[..., 5, 14] = 1
    assert_close(parse_view("rotate 90")(image)[0, 0, 1, 10], torch.tensor(1.0), **RESAMPLED)


def test_own_lists_keep_their_order_and_repetitions():
    views, image = parse_views([*OWN, "flip"]), noise(1, 3, 8, 8)
    assert len(views) == 6
    for view, text in zip(views, [*OWN, "flip"], strict=True):
        assert torch.equal(view(image), parse_view(text)(image))
    assert [view is identity for view in views] == [False, False, True, False, False, False]


def test_a_tuple_of_views_will_do():
    assert parse_views(("image", "image")) == (identity, identity)


@pytest.mark.parametrize("text", ["rotate 45", " rotate   45.0 ", "rotate +4.5e1"])
def test_numbers_may_be_written_in_any_way(text):
    image = noise(3, 8, 8)
    assert torch.equal(view_of(text, image), view_of("rotate 45", image))


@pytest.mark.parametrize("number", [1, 2, 5, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 8, 100])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_sum_over_views_is_that_of_a_loop(number, batch_size, count):
    images, views, spy = noise(number, 3, 8, 8), parse_views(OWN[:count]), Spy()
    total = sum_over_views(spy, images, views, batch_size)
    assert total.shape == (number,)
    assert total.dtype == torch.float32
    assert_close(total, looped(images, views), **REFERENCE)
    assert max(spy.lengths) <= batch_size
    assert sum(spy.lengths) == number * count


@settings(max_examples=25)
@given(number=st.integers(1, 40), count=st.integers(0, 22), batch_size=st.integers(1, 70))
def test_no_more_images_than_the_batch_size_are_scored_at_once(number, count, batch_size):
    images, views, spy = noise(number, 3, 2, 2), (identity,) * count, Spy()
    total = sum_over_views(spy, images, views, batch_size)
    assert_close(total, count * score_of(images), **REFERENCE)
    assert all(0 < length <= batch_size for length in spy.lengths)
    assert sum(spy.lengths) == number * count


@pytest.mark.parametrize(
    ("number", "count", "lengths"),
    [(2, 22, [32, 12]), (1, 21, [21]), (16, 4, [32, 32]), (17, 2, [17, 17]), (40, 2, [32, 8, 32, 8]), (3, 0, [])],
)
def test_few_images_are_stacked_and_many_are_split(number, count, lengths):
    spy = Spy()
    sum_over_views(spy, noise(number, 3, 2, 2), (identity,) * count)
    assert spy.lengths == lengths


def test_the_mean_over_the_papers_views_is_that_of_the_reference():
    images = noise(2, 3, 12, 12)
    total = sum_over_views(score_of, images, parse_views("paper"))
    expected = [reference_views.mean_over_views(lambda view: float(score_of(view[None])), image) for image in images]
    assert_close(total.double() / 22, torch.tensor(expected, dtype=torch.float64), **REFERENCE)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_views_come_back_in_their_precision_and_are_made_in_float32(dtype, autocast):
    images, views, spy = noise(2, 3, 12, 12).to(dtype), parse_views(OWN), Spy()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total = sum_over_views(spy, images, views)
    expected = torch.cat([view(images.float()).to(dtype) for view in views])
    assert_close(torch.cat(spy.parts), expected, **EXACT)
    assert total.dtype == torch.float32
    assert spy.autocast == [autocast]


@pytest.mark.parametrize("text", OWN)
def test_views_leave_the_images_as_they_are(text):
    images = noise(2, 3, 8, 8)
    before = images.clone()
    sum_over_views(score_of, images, [parse_view(text)])
    assert torch.equal(images, before)


@settings(max_examples=10)
@given(
    text=st.sampled_from(PAPER),
    seed=st.integers(0, 2**31),
    number=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_a_view_does_not_depend_on_neighbors_or_place(text, seed, number, order):
    images, places = noise(number, 3, 10, 10, seed=seed), list(range(number))
    order.shuffle(places)
    view = parse_view(text)
    together = view(images[places])
    assert torch.equal(together, view(images[places].clone()))
    for position, place in enumerate(places):
        assert_close(together[position], view(images[place : place + 1])[0], **RESAMPLED)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**31),
    number=st.integers(1, 5),
    batch_size=st.integers(1, 40),
    order=st.randoms(use_true_random=False),
)
def test_a_sum_does_not_depend_on_neighbors_or_the_order_of_images_and_views(seed, number, batch_size, order):
    images, places, views = noise(number, 3, 10, 10, seed=seed), list(range(number)), list(parse_views("paper"))
    expected = torch.cat([sum_over_views(score_of, image[None], views) for image in images])
    order.shuffle(places)
    order.shuffle(views)
    total = sum_over_views(score_of, images[places], views, batch_size)
    assert torch.equal(total, sum_over_views(score_of, images[places].clone(), views, batch_size))
    assert_close(total, expected[places], atol=2e-5, rtol=0)
