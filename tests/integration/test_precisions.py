"""Half precision on the engine, on a CPU, with all that a model can have, against single precision."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin import AnoVL, GlobalScore, LinearAdapter, PatchSubspace, TextAdapter
from anovl_plugin.demo.datamodule import make_category
from tests.helpers.engine_runs import quiet_engine

PRECISIONS = ["bf16-true", "bf16-mixed"]
CLASSES = {"crack": "brick", "hole": "wall"}
SETTINGS = {
    "plain": {},
    "views": {"image_score": GlobalScore("paper")},
    "tiles": {"tiles_per_side": 2, "image_score": "map"},
    "text adapter": {"adaptation": TextAdapter()},
    "linear adapter in tiles": {"adaptation": LinearAdapter(), "tiles_per_side": 2},
    "memory": {"k_shot": 2},
    "subspace in tiles": {"k_shot": 2, "references": PatchSubspace(), "tiles_per_side": 2},
    "classes": {"class_name": CLASSES},
    "classes with memories": {"class_name": CLASSES, "k_shot": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of six images of bricks in two folders, and of normal ones for each beside them."""
    root = tmp_path_factory.mktemp("precisions")
    make_category(root, "brick")
    for kind in ("crack", "hole"):
        for index in range(3):
            name = f"{index:03d}.png"
            for target, source in ((f"images/{kind}", f"test/{kind}"), (f"normal/{CLASSES[kind]}", "train/good")):
                (root / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(root / "brick" / source / name, root / target / name)
    return root


def raw(batches):
    """Return image scores and maps; without a post-processor there is nothing else."""
    scores, maps = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("pred_score", "anomaly_map"))
    return SimpleNamespace(score=scores, map=maps)


@pytest.fixture(scope="module")
def predict(folder, tmp_path_factory):
    """Return a function that predicts the images with a setting in a precision; each only once."""
    found = {}

    def predict_images(name, precision):
        if (name, precision) not in found:
            options = {"class_name": "brick"} | SETTINGS[name]
            if "k_shot" in options:
                several = isinstance(options["class_name"], dict)
                options["few_shot_source"] = folder / ("normal" if several else "normal/brick")
            model = AnoVL("anovl-demo", domain="texture", visualizer=False, post_processor=False, **options)
            engine = quiet_engine(tmp_path_factory.mktemp("run"), precision=precision)
            batches = engine.predict(model, data_path=folder / "images", return_predictions=True)
            found[name, precision] = raw(batches)
        return found[name, precision]

    return predict_images


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SETTINGS)
def test_bfloat16_is_close_to_float32(name, precision, predict):
    expected, found = predict(name, "32-true"), predict(name, precision)
    assert found.score.dtype == found.map.dtype == torch.float32
    assert not torch.equal(found.map, expected.map)
    assert_close(found.score, expected.score, rtol=0, atol=0.05)
    assert_close(found.map, expected.map, rtol=0, atol=0.1)
    assert (found.map - expected.map).abs().mean() < 5e-3
