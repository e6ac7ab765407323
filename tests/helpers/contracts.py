"""The contract of every public argument, in one table: its type, its range, and what is an error.

What is wrong follows from the type: of the samples that every argument is tried with, each kind of argument accepts
those that its two conditions hold for. A sample of another type is a TypeError, one out of range a ValueError.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from inspect import signature
from math import inf, isfinite, nan, nextafter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.metrics import Evaluator
from anomalib.visualization import ImageVisualizer, Visualizer
from torch import Tensor, nn
from torchvision.transforms.v2 import Resize

from anovl_plugin import (
    Adaptation,
    AnoVL,
    AnoVLModel,
    AntialiasedPreProcessor,
    CombinedScore,
    GlobalScore,
    ImageScore,
    LinearAdapter,
    MapScore,
    PatchMemory,
    PatchSubspace,
    References,
    TextAdapter,
    ZeroShotPostProcessor,
    load_backbone,
    prompt_ensemble,
)
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.vision.architecture import DEMO_FOLDER
from anovl_plugin.vision.views import PAPER, parse_view, parse_views
from tests.helpers.adaptations import Center


class Hostile:
    """An object that can be neither shown, compared, copied nor counted."""

    def _fail(self, *_: object) -> None:
        msg = "two lines\nof a user's own error"
        raise RuntimeError(msg)

    __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __float__ = __deepcopy__ = _fail


INTEGERS = (0, 1, 3, -1, 10**6, 10**30, -(10**30), 10**5000, np.int64(3), np.uint8(0), np.int32(-5))
FLOATS = (0.0, 1.0, 0.5, -0.1, 1.1, 1e300, nan, inf, -inf, np.float32(0.5), np.float64(nan), np.float16(inf))
NUMBERS = (True, False, np.True_, np.False_, *INTEGERS, *FLOATS, Fraction(1, 2), Decimal("0.5"), 1j)
# No path among them exists.
STRINGS = (
    *(
        "",
        " ",
        "3",
        "0.5",
        "-1",
        "nan",
        "true",
        "false",
        "True",
        "yes",
        "no",
        "none",
        "null",
        "abc",
        "two\nlines",
        "\0",
    ),
    *("caf\udce9", "x" * 10_000, "x" * 10**6, "hf-hub:", "local-dir:", "local-dir:\0", "local-dir:" + "x" * 10_000),
    *("a.b.C", "..", "TextBank", "anovl_plugin.TextBank", "/nowhere/file"),
)
LISTS = ([None], [True], [3], (3,), [0.5], ["abc"], ["3"], [b"flip"], [[3]], [3, "abc"], (3, None), [3] * 10_000)
CONTAINERS = ([], (), {}, set(), *LISTS, ["abc"] * 10_000, {3}, {"a": 1}, {1: 2}, {"class_path": 3}, range(3))
ARRAYS = (np.array(3), np.array([1, 2]), np.array(["abc"]), torch.tensor(3), torch.tensor([0.5, 1.0]))
OBJECTS = (None, object(), Hostile(), int, Adaptation, TextAdapter, len, (each for each in ()), nn.Identity())
OTHERS = (b"", b"3", b"abc", bytearray(b"3"), Path(), Path("/nowhere/file"), *ARRAYS, *OBJECTS)
SAMPLES = (*NUMBERS, *STRINGS, *CONTAINERS, *OTHERS)


class Kind(NamedTuple):
    """What an argument accepts.

    Attributes:
        has_type: Whether a value is of the argument's type.
        in_range: Whether a value of that type is accepted.
        advice: What the message about any other value says to do, one phrase or several to choose from.
        samples: What to try besides :data:`SAMPLES`.
        bounds: Least and largest number, where the argument is one.
    """

    has_type: Callable[[Any], bool]
    in_range: Callable[[Any], bool]
    advice: tuple[str, ...]
    samples: tuple = ()
    bounds: tuple[float, float] | None = None

    def or_none(self) -> "Kind":
        """Return the kind that accepts None, too."""
        return self._replace(
            has_type=lambda value: value is None or self.has_type(value),
            in_range=lambda value: value is None or self.in_range(value),
        )


def is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return is_whole(value) or isinstance(value, float | np.floating)


def is_real(value: object) -> bool:
    return is_number(value) or isinstance(value, Fraction)


def whole_number(least: int, most: int, advice: str) -> Kind:
    edges = (least, most, least - 1, most + 1, np.int64(least), np.float32(least))
    return Kind(is_whole, lambda value: least <= value <= most, (advice,), edges, (least, most))


def number(least: float, most: float, *advice: str, has_type: Callable[[Any], bool] = is_number) -> Kind:
    edges = (least, most, nextafter(least, -inf), nextafter(most, inf), np.float32(least), np.float64(most))
    return Kind(has_type, lambda value: least <= value <= most, advice, edges, (least, most))


def flag(advice: str) -> Kind:
    return Kind(lambda value: isinstance(value, bool), lambda _: True, (advice,))


def choice(names: tuple[str, ...], advice: str) -> Kind:
    edges = (*names, *(name.upper() for name in names), *(f"{name} " for name in names), ", ".join(names), list(names))
    return Kind(lambda value: isinstance(value, str), lambda value: value in names, (advice,), edges)


def component(kind: type, *samples: object) -> Kind:
    advice = f"must be true, false or an instance of {kind.__name__}"
    return Kind(lambda value: isinstance(value, bool | kind), lambda _: True, (advice,), samples)


def part(base: type, names: tuple[str, ...], accepted: tuple, *advice: str) -> Kind:
    """Return the kind of a pluggable part: an instance, a name, a class path, or a config."""
    paths = (*names, *(f"anovl_plugin.{name}" for name in names if name[0].isupper()))
    wrong = ({"class_path": names[-1], "init_args": each} for each in ({"speed": 3}, {3: 3}))
    return Kind(
        lambda value: isinstance(value, str | base) or (isinstance(value, Mapping) and value != {"class_path": 3}),
        lambda value: isinstance(value, base) or value in paths or value in accepted,
        advice,
        (*paths, *accepted, *wrong, base, *PARTS),
    )


def is_pair(value: object) -> bool:
    return all(map(is_whole, value)) if isinstance(value, list | tuple) else is_whole(value)


def fits_patches(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else (value, value)
    patches = [side // 8 for side in sides] if all(8 <= side <= 2**14 and side % 8 == 0 for side in sides) else []
    return len(patches) == 2 and patches[0] * patches[1] <= 2**14


IMAGE_SIZE = Kind(
    is_pair,
    fits_patches,
    ("must be a positive number of pixels or a pair", "must be multiples of the patches", "use a smaller image_size"),
    (
        *(8, 96, np.int64(104), [96, 104], (96, np.uint8(8)), torch.Size([96, 96]), 1024, (16384, 8)),
        *(97, (96, 97), (96, 0), [96, -8], (96, 96, 96), [96], (96, 96.0), (96, True), 16385, 16384, "96x96", "96"),
        np.ones(2),
    ),
)


def is_view(text: str) -> bool:
    words = {"image": (), "flip": (), "gray": (), "rotate": (360,), "translate": (2, 2)}
    word, *numbers = text.split() or [""]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        return False
    limits = words.get(word)
    return (
        limits is not None
        and len(values) == len(limits)
        and all(isfinite(value) and abs(value) <= limit for value, limit in zip(values, limits, strict=True))
    )


VIEW_TEXTS = (
    *PAPER,
    *("rotate 360", "rotate -360", "translate 2 -2", " rotate   4.5e1 "),
    *("rotate 360.1", "rotate 1e30", "rotate inf", "rotate nan", "rotate 1e999", "translate 0 2.1", "translate 1e30 0"),
    *("turn 45", "Flip", "rotate", "translate 0.1", "rotate 45 90", "translate 0.1 0.2 0.3 0.4", "flip 1", "image 0"),
    *("rotate right", "rotate 45°", "translate 0.1, 0.2", "image flip", "single", "paper"),
)
VIEW = Kind(lambda value: isinstance(value, str), is_view, ("is not one of: image, rotate",), VIEW_TEXTS)
VIEWS = Kind(
    lambda value: (
        isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(view, str) for view in value))
    ),
    lambda value: value in ("single", "paper") or (not isinstance(value, str) and value and all(map(is_view, value))),
    ("must be single, paper or a list such as", "name at least one view", *VIEW.advice),
    (
        "single",
        "paper",
        "all",
        "image",
        *([view] for view in VIEW_TEXTS),
        ["image"] * 3,
        ("image", "flip"),
        ["flip", 3],
    ),
)
TOP_FRACTION = number(0, 1, "must be between 0 (the highest pixel) and 1 (the whole map)", has_type=is_real)
PARTS = (TextAdapter(steps=2), Center(0.5), MapScore(0.1), GlobalScore("paper"), "MapScore", "TextAdapter")
ADAPTATION = part(
    Adaptation,
    ("TextAdapter", "LinearAdapter"),
    ({"class_path": "TextAdapter", "init_args": {"steps": 2}},),
    "must be an instance of Adaptation or name its class",
    "use LinearAdapter, TextAdapter, or the class path of your own",
    "does not accept",
).or_none()
REFERENCES = part(
    References,
    ("PatchMemory", "PatchSubspace"),
    ({"class_path": "PatchSubspace", "init_args": {"variance": 0.5}},),
    "must be an instance of References or name its class",
    "PatchMemory, PatchSubspace, or the class path of your own",
    "does not accept",
).or_none()
IMAGE_SCORE = part(
    ImageScore,
    ("global", "map", "both", "GlobalScore", "MapScore", "CombinedScore"),
    ({"class_path": "MapScore", "init_args": {"top_fraction": 1}}, {"class_path": "anovl_plugin.GlobalScore"}),
    "must be one of global, map, both, or an ImageScore",
    "use CombinedScore, GlobalScore, MapScore, or the class path of your own",
    "does not accept",
    "return a tuple of functions from images to images",
)


@dataclass
class NamedViews(ImageScore):
    """Names its views, as settings do, instead of returning functions."""

    image_views: Any = ("flip",)

    def combine(self, class_margins: Tensor, margin_map: Tensor) -> Tensor:  # noqa: ARG002
        return class_margins


# Settings of one score are not those of another.
IMAGE_SCORE = IMAGE_SCORE._replace(
    has_type=lambda value, has_type=IMAGE_SCORE.has_type: has_type(value) and not isinstance(value, NamedViews),
    samples=(
        *IMAGE_SCORE.samples,
        *map(NamedViews, [("flip",), "paper", len, 3, None]),
        "mean",
        {"class_path": "GlobalScore", "init_args": {"top_fraction": 0.1}},
        {"class_path": "MapScore", "init_args": {"views": "paper"}},
    ),
)
BACKBONE = Kind(
    lambda value: isinstance(value, str),
    lambda value: value in {"anovl-demo", "hf-hub:owner/name"},
    (
        "must be a string such as",
        "supported: ViT-B-16-plus-240,",
        "is written as hf-hub:OWNER/NAME",
        "write local-dir:FOLDER",
        "use a folder that open_clip exported",
        "needs weights: an open_clip tag or a weights file",
        "which needs no download",
    ),
    (
        "anovl-demo",
        "hf-hub:owner/name",
        "hf-hub:name",
        "hf-hub:a/b/c",
        "RN50",
        "ANOVL-DEMO",
        f"local-dir:{DEMO_FOLDER}",
    ),
)
PRETRAINED_OF_DEMO = Kind(
    lambda value: value is None or isinstance(value, str | Path),
    lambda value: value in {None, "laion400m_e32"},
    ("must be an open_clip tag or the path of a weights file", "omit pretrained"),
    ("openai", "laion400m_e32", Path("weights.pt")),
)
CLASS_NAME = Kind(
    lambda value: isinstance(value, str),
    lambda value: value.strip() != "" and "\udce9" not in value and len(value) <= 1000,
    ("must be a string that names", "must name what the images show", "use letters that can", "use a shorter"),
    ("bottle", "metal_nut", "Schraube äöü", "部品", "{}", "x" * 1000, "x" * 1001),
)
CLASS_NAMES = Kind(
    lambda value: value is None or isinstance(value, str) or (type(value) is dict and all_strings(value)),
    lambda value: value is None or (CLASS_NAME.in_range(value) if isinstance(value, str) else value == {"a": "bottle"}),
    (*CLASS_NAME.advice, "must map names of folders to class names"),
    (*CLASS_NAME.samples, "from_folder", {"a": "bottle"}, {"a/b": "bottle"}, {"a": " "}),
)
DOMAIN = choice(("auto", "object", "texture"), "must be one of 'auto', 'object', 'texture'")
OWN_PROMPTS = {"extends": "paper", "defects": ["scratch"]}
PROMPTS = Kind(
    lambda value: value is None or isinstance(value, str | Path | Mapping | Prompts),
    lambda value: value is None or value in ("paper", OWN_PROMPTS) or isinstance(value, Prompts),
    (
        "must be a YAML file, 'paper' or a mapping",
        "pass a YAML file, 'paper' or a mapping",
        "use one of",
        "write it, or",
    ),
    ("paper", OWN_PROMPTS, Prompts.load(OWN_PROMPTS), {"extends": "paper", "states": []}, ["paper"]),
)
MODEL = {
    "backbone": BACKBONE,
    "class_name": CLASS_NAME.or_none(),
    "domain": DOMAIN,
    "prompts": PROMPTS,
    "pretrained": PRETRAINED_OF_DEMO,
    "image_size": IMAGE_SIZE.or_none(),
    "image_score": IMAGE_SCORE,
    "tiles_per_side": whole_number(1, 64, "must be a number of tiles along the short side, 1 to 64").or_none(),
    "adaptation": ADAPTATION,
    "references": REFERENCES,
    "cache": flag("must be true or false"),
}
FEW_SHOT = {
    "k_shot": whole_number(0, 100_000, "must be a number of reference images, 0 to 100000"),
    "few_shot_source": Kind(
        lambda value: value is None or isinstance(value, str | Path),
        lambda value: value is None or (str(value) != "" and "\0" not in str(value)),
        ("must be the path of a folder of reference images",),
        ("shots", Path("more/shots")),
    ),
}
UP_TO_ADAPTATION = {name: kind for name, kind in MODEL.items() if name not in {"references", "cache"}}
COMPONENTS = {
    "pre_processor": component(nn.Module, AntialiasedPreProcessor(Resize(96))),
    "post_processor": component(nn.Module, ZeroShotPostProcessor()),
    "evaluator": component(Evaluator, Evaluator(), AntialiasedPreProcessor()),
    "visualizer": component(Visualizer, ImageVisualizer(), Evaluator()),
}
RUN = {
    "on_error": choice(("report", "stop"), "must be 'report', 'stop' or None").or_none(),
    "save_maps": choice(("png", "npy"), "must be 'png', 'npy' or None").or_none(),
}
ADAPTER = {
    "steps": whole_number(1, 2**63 - 1, "must be a whole number of at least 1"),
    "learning_rate": number(0, 100, "must be a number from 0 to 100"),
    "noise_std": number(0, 100, "must be a number from 0 to 100"),
    "seed": whole_number(0, 2**63 - 1, "must be a whole number of at least 0"),
    "batch_size": whole_number(1, 2**63 - 1, "must be a whole number of at least 1"),
}
DEPTHS = Kind(
    lambda value: value is None or (isinstance(value, list | tuple) and all(map(is_whole, value))),
    lambda value: value is None or (value and min(value) >= 1 and max(value) < 2**63 and len(set(value)) == len(value)),
    ("must be a list of different block numbers", "nothing to compare; set one of them"),
    ([1], (2, 5), [np.int64(3)], [1, 1], [0], [1, 2.0], [True], [2, "3"], [2**63]),
)
SHARE = number(0, 1, "must be a number from 0 to 1", "must be above 0")
SHARE = SHARE._replace(in_range=lambda value: 0 < value <= 1, samples=(*SHARE.samples, 0.3))
# By itself; others have no effect without unlabelled.
LOWEST_SHARE = SHARE._replace(
    in_range=lambda value: value == 0.3, advice=(*SHARE.advice, "omit it, or set unlabelled to true")
)
COMPARED = {
    "weight": number(0, 1, "must be a number from 0 to 1"),
    "depths": DEPTHS,
    "value_wise": flag("must be true or false"),
    "views": VIEWS,
    "top_fraction": TOP_FRACTION,
}
SWITCH = flag("must be true or false")
SENSITIVITY = number(0, 1, "must be a number from 0 to 1", has_type=is_real)
# In float32, which scores are compared in, numbers closer to 0 or 1 than these are 0 or 1.
THRESHOLD = Kind(
    is_real,
    lambda value: 1e-45 < value < 1 - 3e-8,
    ("must be a number between 0 and 1, or None", "must lie between 0 and 1, as scores do; omit it"),
    (1e-6, 1 - 1e-6, np.float32(0.3), 1e-50, 1 - 1e-9),
    (0, 1),
).or_none()
BATCH_SIZE = whole_number(1, 2**31 - 1, "must be a whole number from 1 to 2147483647")


def all_strings(value: dict) -> bool:
    return all(isinstance(each, str) for pair in value.items() for each in pair)


def is_folder_path(value: object) -> bool:
    if value is None:
        return True
    path = str(value)
    return path != "" and path.isascii() and path.isprintable() and len(path) < 200 and not path.startswith(__file__)


CONTRACTS: dict[Callable, dict[str, Kind]] = {
    AnoVL: UP_TO_ADAPTATION
    | FEW_SHOT
    | MODEL
    | {"class_name": CLASS_NAMES, "save_backbone": flag("must be true or false")}
    | COMPONENTS
    | RUN,
    AnoVLModel: MODEL,
    TextAdapter: ADAPTER,
    LinearAdapter: ADAPTER,
    PatchMemory: COMPARED
    | {"coreset": SHARE.or_none(), "unlabelled": flag("must be true or false"), "lowest_share": LOWEST_SHARE},
    PatchSubspace: COMPARED
    | {"variance": number(0, 0.999, "must be a number from 0 to 0.999"), "unlabelled": flag("must be true or false")},
    GlobalScore: {"views": VIEWS},
    MapScore: {"top_fraction": TOP_FRACTION},
    CombinedScore: {"views": VIEWS, "top_fraction": TOP_FRACTION},
    prompt_ensemble: {"class_name": CLASS_NAME, "domain": DOMAIN},
    parse_view: {"text": VIEW},
    parse_views: {"views": VIEWS},
    load_backbone: {
        "backbone": BACKBONE._replace(in_range=lambda value: value == "anovl-demo"),
        "pretrained": PRETRAINED_OF_DEMO,
        "image_size": IMAGE_SIZE.or_none(),
        "image": flag("must be true or false"),
        "text": flag("must be true or false"),
    },
    AntialiasedPreProcessor: {
        "transform": Kind(
            lambda value: isinstance(value, nn.Module | None),
            lambda _: True,
            ("must be a transform of torchvision.transforms.v2 or None",),
            (Resize(96), Resize, [Resize(96)]),
        )
    },
    ZeroShotPostProcessor: {
        "enable_normalization": SWITCH,
        "enable_thresholding": SWITCH,
        "enable_threshold_matching": SWITCH,
        "image_sensitivity": SENSITIVITY,
        "pixel_sensitivity": SENSITIVITY,
        "image_threshold": THRESHOLD,
        "pixel_threshold": THRESHOLD,
    },
    DemoSurfaces: {
        "root": Kind(
            lambda value: value is None or isinstance(value, str | Path),
            is_folder_path,
            ("must be the path of a folder", "use another folder, or link to it"),
            (
                Path(__file__),
                f"{__file__}/folder",
                "new",
                Path("new/newer"),
                "with a space",
                "Prüfbilder",
                "long/" * 110,
            ),
        ),
        "category": choice(("brick", "grass", "gravel", "wood"), "must be one of brick, grass, gravel, wood"),
        "train_batch_size": BATCH_SIZE,
        "eval_batch_size": BATCH_SIZE,
        "num_workers": whole_number(0, 1024, "must be a whole number from 0 to 1024"),
        "seed": whole_number(0, 2**63 - 1, "must be a whole number from 0 to 9223372036854775807").or_none(),
    },
}
# Arguments to pass with the one that is tried, so that nothing is downloaded.
WITH: dict[Callable, dict[str, object]] = {
    # References without reference images are an error.
    AnoVL: {"backbone": "anovl-demo", "visualizer": False, "k_shot": 1},
    AnoVLModel: {"backbone": "anovl-demo"},
    load_backbone: {"backbone": "anovl-demo"},
    prompt_ensemble: {"class_name": "bottle"},
}


def default_of(owner: Callable, name: str) -> object:
    return signature(owner).parameters[name].default
