"""Resizing in exported graphs is that of the engine."""

import copy
import pickle

import pytest
import torch
import torchvision
from anomalib.data import ImageBatch
from anomalib.data.transforms import ExportableCenterCrop
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import (
    CenterCrop,
    ColorJitter,
    Compose,
    InterpolationMode,
    Lambda,
    Normalize,
    RandomHorizontalFlip,
    Resize,
)
from torchvision.transforms.v2.functional import resize

from anovl_plugin.components.images.pre_processor import (
    MAX_PIXELS,
    AntialiasedPreProcessor,
    ImageTooLargeError,
    MatrixResize,
    check_resized,
    resize_matrix,
    resized,
)
from tests.helpers.tolerances import FLOAT32

# torch itself gets widths of one pixel wrong: it repeats one row.
sides = st.integers(2, 150)


@given(sides, sides, st.one_of(st.tuples(sides), st.tuples(sides, sides)))
def test_equals_antialiased_resizing(height, width, size):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    expected = resize(images, list(size), antialias=True)
    assert_close(MatrixResize(Resize(size))(images), expected, rtol=0, atol=2e-5)


@given(sides, sides)
def test_rows_are_mirrored_means(length, target):
    weights = resize_matrix(length, target, torch.empty(0, dtype=torch.float64))
    assert weights.shape == (target, length)
    assert (weights >= 0).all()
    assert_close(weights.sum(1), torch.ones(target, dtype=torch.float64), rtol=0, atol=1e-6)
    assert_close(weights.flip(0, 1), weights, rtol=0, atol=1e-4)


class FloatsAsBfloat16(TorchDispatchMode):
    """Rounds every result in float32 to bfloat16, as runtimes of graphs do on processors with units for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        rounded = isinstance(result, torch.Tensor) and result.dtype == torch.float32
        return result.to(torch.bfloat16).to(torch.float32) if rounded else result


@given(st.integers(2, 600), st.integers(2, 600))
def test_weights_hold_in_bfloat16(length, target):
    expected = resize_matrix(length, target, torch.empty(0))
    with FloatsAsBfloat16():
        weights = resize_matrix(length, target, torch.empty(0))
    # Three roundings to 8 bits.
    assert_close(weights, expected, rtol=3 * 2**-8, atol=0)


# Earlier versions of torchvision reject the name themselves, so there is no such transform to test.
BY_NAME = pytest.param(
    "bilinear",
    marks=pytest.mark.skipif(
        Version(torchvision.__version__) < Version("0.28"), reason="torchvision takes names since 0.28"
    ),
)


@pytest.mark.parametrize("mode", [BY_NAME, 2, InterpolationMode.BILINEAR])
def test_bilinear_resizing_is_known_in_every_spelling(mode):
    transform, images = Resize([8, 8], mode), torch.rand(1, 3, 30, 20)
    assert_close(AntialiasedPreProcessor(transform)(images), transform(images), **FLOAT32)


def test_keeps_the_type_of_the_images():
    assert MatrixResize(Resize((8, 8)))(torch.rand(1, 3, 9, 9).bfloat16()).dtype == torch.bfloat16


def test_a_whole_transform_is_the_same_in_the_graph():
    transform = Compose([Resize([20, 30]), Compose([CenterCrop(16)]), Normalize([0.5] * 3, [0.2] * 3)])
    pre_processor, images = AntialiasedPreProcessor(transform), torch.rand(2, 3, 47, 55)
    assert isinstance(pre_processor.export_transform.transforms[1].transforms[0], ExportableCenterCrop)
    assert_close(pre_processor(images), transform(images), rtol=0, atol=1e-5)
    fresh = AntialiasedPreProcessor()
    fresh.load_checkpoint_config(pre_processor.checkpoint_config())
    assert_close(fresh(images), transform(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "resizing",
    [Resize([8, 8], antialias=False), Resize([8, 8], InterpolationMode.NEAREST), Resize(8, max_size=9)],
    ids=["aliased", "nearest", "bounded"],
)
def test_other_resizing_is_left_to_anomalib(resizing):
    pre_processor, images = AntialiasedPreProcessor(resizing), torch.rand(1, 3, 8, 8)
    assert isinstance(pre_processor.export_transform, Resize)
    assert torch.equal(pre_processor(images), images)


def test_a_transform_can_be_set_later():
    pre_processor, images = AntialiasedPreProcessor(), torch.rand(1, 3, 30, 20)
    transform = Compose([Resize([8, 8]), Normalize([0.5] * 3, [0.2] * 3)])
    pre_processor.set_transform(transform)
    assert pre_processor.transform is transform
    assert_close(pre_processor(images), transform(images), rtol=0, atol=1e-5)
    pre_processor.set_transform(None)
    assert pre_processor(images) is images


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (Compose([Resize([8, 8]), Compose([RandomHorizontalFlip(), ColorJitter()])]), "RandomHorizontalFlip"),
        (Lambda(torch.flip), "Lambda"),
    ],
)
def test_a_transform_that_cannot_be_saved_is_asked_for(transform, name):
    config = AntialiasedPreProcessor(transform).checkpoint_config()
    assert config == {"transform": None, "unsaved": name}
    default = AntialiasedPreProcessor()
    default.set_transform(Resize([8, 8]))
    with pytest.raises(ValueError, match=rf"^the checkpoint .* cannot be saved \({name}\); pass the same"):
        default.load_checkpoint_config(config)
    again = AntialiasedPreProcessor(transform)
    again.load_checkpoint_config(config)
    assert again.transform is transform


def test_a_checkpoint_without_a_transform_has_none():
    config = AntialiasedPreProcessor().checkpoint_config()
    assert config == {"transform": None}
    loaded = AntialiasedPreProcessor(Resize([8, 8]))
    loaded.load_checkpoint_config(config)
    assert loaded.transform is loaded.export_transform is None


@given(sides, sides, sides)
def test_size_of_the_result(short, height, width):
    assert resized([short], height, width) == tuple(resize(torch.empty(1, height, width), [short]).shape[-2:])


def test_largest_result():
    check_resized([2**13], 10, 20)
    with pytest.raises(ImageTooLargeError, match=f"10 × 21 pixels .* to 8192 × 17203, .* more than {MAX_PIXELS} pix"):
        check_resized([2**13], 10, 21)
    check_resized([8, 8], 1, 10**9)


def pickled(pre_processor):
    return pickle.loads(pickle.dumps(pre_processor))  # noqa: S301 - written here


TOO_LARGE = r"an image of 1 × 10000 pixels would be resized to 720 × 7200000, .*; crop it, cut it up, or use fewer"


@pytest.mark.parametrize("of", [lambda it: it, lambda it: Compose([it]), lambda it: Compose([Compose([it])])])
@pytest.mark.parametrize("clone", [lambda it: it, copy.deepcopy, pickled])
def test_an_image_that_would_fill_the_memory(of, clone):
    pre_processor, strip = clone(AntialiasedPreProcessor(of(Resize([720])))), torch.zeros(2, 3, 1, 10_000)
    with pytest.raises(ValueError, match=f"^{TOO_LARGE}") as caught:
        pre_processor(strip)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^{TOO_LARGE}"):
        pre_processor.transform(strip)
    for stage in ("validation", "test", "predict"):
        for paths, start in ((["a.png", "b.png"], "a.png: "), (None, "")):
            batch = ImageBatch(image=strip, image_path=paths)
            with pytest.raises(ValueError, match=f"^{start}{TOO_LARGE}"):
                getattr(pre_processor, f"on_{stage}_batch_start")(None, None, batch, 0)


def test_a_bound_on_the_long_side_is_enough():
    strip = torch.zeros(1, 3, 20, 10_000)
    assert AntialiasedPreProcessor(Resize(719, max_size=720)).transform(strip).shape[-1] == 720


def test_a_transform_checks_its_result_once_however_often_it_is_set():
    transform = Resize([8])
    pre_processor = AntialiasedPreProcessor(transform)
    pre_processor.set_transform(transform)
    assert len(transform._forward_pre_hooks) == 1


def test_a_graph_holds_no_check():
    program = torch.export.export(AntialiasedPreProcessor(Resize([8])), (torch.rand(1, 3, 20, 30),))
    assert program.module()(torch.rand(1, 3, 20, 30)).shape == (1, 3, 8, 12)


def test_no_transform():
    images = torch.rand(1, 3, 5, 5)
    assert AntialiasedPreProcessor()(images) is images
