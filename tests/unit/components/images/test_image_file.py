"""Files of more than 8 bits come out as their 8-bit copies do, or an error names them."""

import re

import numpy as np
import pytest
import tifffile
import torch
from anomalib.data.utils import read_image as read_image_of_8_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from anovl_plugin.components.images.image_file import Header, read_deep_image, read_header, read_image
from tests.helpers.deep_images import gray_levels, write_16_bit_png
from tests.helpers.tolerances import FLOAT32

GRAY, COLOR = gray_levels(9, 7), gray_levels(9, 7, 3)
RGBA = np.dstack([COLOR, GRAY])
EXPECTED = {2: torch.from_numpy(GRAY / 255).expand(3, 9, 7).float()}
EXPECTED[3] = torch.from_numpy(COLOR / 255).permute(2, 0, 1).float()


def wide(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) * 257


def unit(pixels: np.ndarray, dtype: type) -> np.ndarray:
    return (pixels / 255).astype(dtype)


TIFFS = {
    "gray16": (wide(GRAY), {}),
    "rgb16": (wide(COLOR), {"photometric": "rgb"}),
    "planes16": (wide(COLOR).transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    "rgba16": (wide(RGBA), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "alpha16": (
        wide(RGBA[..., [3, 0]]),
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
    ),
    "deflated16": (wide(GRAY), {"compression": "zlib", "predictor": True}),
    "pages16": (np.stack([wide(GRAY), 0 * wide(GRAY)]), {}),
    "white_is_zero16": (65535 - wide(GRAY), {"photometric": "miniswhite"}),
    "big_endian16": (wide(GRAY), {"byteorder": ">"}),
    "bigtiff16": (wide(GRAY), {"bigtiff": True}),
    "uint32": (GRAY.astype(np.uint32) * 16843009, {}),
    "half": (unit(GRAY, np.float16), {}),
    "float": (unit(GRAY, np.float32), {}),
    "rgb_float": (unit(COLOR, np.float32), {"photometric": "rgb"}),
    "double": (unit(GRAY, np.float64), {}),
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiff_reads_as_its_8_bit_copy(name, tmp_path):
    values, options = TIFFS[name]
    tifffile.imwrite(tmp_path / "image.tiff", values, **options)
    assert read_header(tmp_path / "image.tiff").is_deep
    channels = 3 if options.get("photometric") == "rgb" else 2
    tolerance = 1e-3 if name == "half" else 1e-6
    assert_close(read_image(tmp_path / "image.tiff"), EXPECTED[channels], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("pixels", "channels"), [(GRAY, 2), (COLOR, 3), (RGBA, 3)], ids=["gray", "rgb", "rgba"])
def test_png_reads_as_its_8_bit_copy(pixels, channels, tmp_path):
    write_16_bit_png(tmp_path / "image.png", wide(pixels))
    assert read_header(tmp_path / "image.png").is_deep
    assert_close(read_image(tmp_path / "image.png"), EXPECTED[channels], **FLOAT32)


def test_low_bytes_count(tmp_path):
    values = np.full((4, 4, 3), 0x7FFF, np.uint16)
    write_16_bit_png(tmp_path / "image.png", values)
    assert_close(read_image(tmp_path / "image.png"), torch.full((3, 4, 4), 0x7FFF / 65535), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("dtype", "white"), [(np.int16, 32767), (np.int32, 2**31 - 1), (np.uint32, 2**32 - 1)])
def test_white_is_the_largest_value_of_the_type(dtype, white, tmp_path):
    tifffile.imwrite(tmp_path / "image.tiff", np.array([[0, white // 2], [white, 1]], dtype))
    image = read_deep_image(tmp_path / "image.tiff")
    assert image.white == white
    assert_close(image.pixels[2], torch.tensor([[0, 0.5], [1, 1 / white]]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("white", [4095, 65535])
def test_pgm_is_scaled_to_its_largest_value(white, tmp_path):
    values = np.array([[0, white // 3], [white, white]], ">u2")
    (tmp_path / "image.pgm").write_bytes(b"P5 2 2 %d\n" % white + values.tobytes())
    assert_close(read_image(tmp_path / "image.pgm")[0], torch.tensor([[0, 1 / 3], [1, 1]]), rtol=0, atol=1e-4)


@given(st.lists(st.integers(0, 65535), min_size=4, max_size=4))
@settings(max_examples=25)
def test_any_16_bit_value_is_divided_by_65535(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("any") / "image.png"
    write_16_bit_png(path, np.array(values, np.uint16).reshape(2, 2))
    # Four roundings to float32, each by up to 6e-8 of the value.
    assert_close(read_image(path)[1].flatten(), torch.tensor(values) / 65535, rtol=2.4e-7, atol=0)


@pytest.mark.parametrize(
    ("values", "options", "error"),
    [
        (np.array([[0.0, 1.5]]), {}, "holds floats from 0 to 1.5, but only floats in [0, 1] have a known white"),
        (np.array([[-0.1, 1.0]]), {}, "holds floats from -0.1 to 1"),
        (np.array([[0.5, np.nan]]), {}, "holds floats from nan to nan"),
        (np.array([[0.5, np.inf]], np.float32), {}, "holds floats from 0.5 to inf"),
        (np.array([[-3, 5]], np.int16), {}, "holds negative integers (down to -3)"),
        (np.array([[-3, 5]], np.int8), {}, "holds negative integers (down to -3)"),
        (np.array([[0, 65535]], np.int32), {}, "holds 32-bit integers up to 65535, which are black"),
        (np.array([[0, 200]], np.uint32), {}, "holds 32-bit integers up to 200, which are black"),
        (wide(RGBA), {"photometric": "separated"}, "is neither a gray nor an RGB image (SEPARATED, 4 channels"),
        (
            wide(GRAY)[..., None].repeat(5, 2),
            {"photometric": "minisblack", "planarconfig": "contig"},
            "is neither a gray nor an RGB image (MINISBLACK, 5 channels",
        ),
        (unit(GRAY, complex), {}, "is neither a gray nor an RGB image (MINISBLACK, 1 channels, complex128"),
    ],
)
def test_an_error_names_the_file(values, options, error, tmp_path):
    tifffile.imwrite(tmp_path / "image.tiff", values, **options)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/image.tiff {re.escape(error)}") as caught:
        read_image(tmp_path / "image.tiff")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) - len(str(tmp_path)) < 300


def test_black_32_bit_image_is_black(tmp_path):
    tifffile.imwrite(tmp_path / "image.tiff", np.zeros((2, 2), np.int32))
    assert read_image(tmp_path / "image.tiff").max() == 0


@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
def test_32_bit_integers_of_another_format(tmp_path):
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "image.im")
    with pytest.raises(ValueError, match=r"image.im holds 32-bit integers, and IM files do not say which is white"):
        read_image(tmp_path / "image.im")


def test_damaged_file_is_named(tmp_path):
    write_16_bit_png(tmp_path / "image.png", wide(gray_levels(90, 70)))
    whole = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(whole[: len(whole) // 2])
    assert read_header(tmp_path / "image.png").is_deep
    with pytest.raises(ValueError, match=r"image.png cannot be read \(\w+: .*\); save it again, or remove it"):
        read_image(tmp_path / "image.png")


def write_8_bit_files(folder) -> dict:
    """Write files that anomalib reads correctly and return their paths."""
    images = {
        "gray.png": Image.fromarray(GRAY),
        "color.jpg": Image.fromarray(COLOR),
        "alpha.png": Image.fromarray(RGBA),
        "palette.png": Image.fromarray(COLOR).quantize(16),
        "bits.png": Image.fromarray(GRAY > 99),
        "bits.tiff": Image.fromarray(GRAY > 99),
        "cmyk.jpg": Image.fromarray(COLOR).convert("CMYK"),
        "color.tiff": Image.fromarray(COLOR),
        "color.webp": Image.fromarray(COLOR),
        "color.bmp": Image.fromarray(COLOR),
    }
    for name, image in images.items():
        image.save(folder / name)
    return {name: folder / name for name in images}


def test_8_bit_files_are_left_to_anomalib(tmp_path):
    for path in write_8_bit_files(tmp_path).values():
        assert read_header(path) == Header(is_deep=False, is_rotated=False), path
        assert torch.equal(read_image(path), read_image_of_8_bits(path, as_tensor=True).as_subclass(Tensor))


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tiff", "image.webp"])
@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_orientation_is_found_in_the_header(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOR).save(tmp_path / name, exif=exif)
    assert read_header(tmp_path / name) == Header(is_deep=False, is_rotated=orientation != 1)


def test_header_of_what_is_not_an_image(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for name in ("text.png", "missing.png"):
        assert not any(read_header(tmp_path / name))


def test_header_decodes_no_pixel(tmp_path):
    write_16_bit_png(tmp_path / "image.png", wide(gray_levels(90, 70)))
    whole = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(whole[:60])
    assert read_header(tmp_path / "image.png") == Header(is_deep=True, is_rotated=False)
