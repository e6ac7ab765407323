"""Several processes, half precision and compiled graphs: the same results, sooner."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin import AnoVL, AnoVLModel, TextAdapter
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.scoring.image_score import CombinedScore
from tests.helpers.commands import ROOT, run
from tests.helpers.engine_runs import quiet_engine, run_test
from tests.helpers.tolerances import HALF_PRECISION, METRIC

METRICS = ("image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score")


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    root = tmp_path_factory.mktemp("surfaces")
    return lambda: DemoSurfaces(root, "brick")


@pytest.fixture(scope="module")
def single_process(surfaces, tmp_path_factory):
    """Return the metrics of one process in single precision."""
    return run_test(brick_model(), tmp_path_factory.mktemp("single_process"), surfaces())


def brick_model() -> AnoVL:
    return AnoVL("anovl-demo", domain="texture", visualizer=False)


def test_two_processes_give_the_same_as_one(single_process, surfaces, tmp_path):
    # 45 images, which two processes cannot share evenly.
    command = f"anomalib test --config {ROOT}/configs/demo.yaml --data.root {surfaces().root} --trainer.accelerator cpu"
    done = run(shlex.split(f"{command} --trainer.devices 2 --trainer.strategy ddp"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = dict(re.findall(r"(\w+_(?:AUROC|F1Score))\W+([\d.]+)", done.stdout))
    for name in METRICS:
        assert float(shown[name]) == pytest.approx(single_process[name], **METRIC)
    pictures = [path.relative_to(tmp_path) for path in tmp_path.rglob("images/*/*.png")]
    tested = list(surfaces().root.rglob("test/*/*.png"))
    assert sorted("/".join(path.parts[-2:]) for path in pictures) == sorted("/".join(p.parts[-2:]) for p in tested)


@pytest.mark.parametrize("seed", [None, 0])
def test_two_processes_with_images_split_at_random(seed, surfaces, tmp_path):
    surfaces().prepare_data()
    command = (
        "anomalib test --model AnoVL --model.backbone anovl-demo --model.class_name brick --model.domain texture "
        "--model.k_shot 2 --model.visualizer false --data Folder --data.name bricks --data.normal_dir train/good "
        f"--data.abnormal_dir test/crack --data.root {surfaces().root}/brick --data.num_workers 0 "
        "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp"
    )
    done = run(shlex.split(command + ("" if seed is None else f" --data.seed {seed}")), tmp_path)
    if seed is None:
        error = (
            "error: each of the 2 processes has different images, because Folder splits them at random; set its seed"
        )
        assert done.returncode == 1
        assert error in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-2000:]


def test_shards_on_two_processes(tmp_path, monkeypatch):
    """The example of docs/scale.md, as it stands there."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "xargs -P 2" in block]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = run(["bash", "-ec", block], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for shard in ("crack", "hole"):
        pictures = (tmp_path / "shards" / shard / "AnoVL").glob("latest/images/*/*.png")
        assert sorted(path.parts[-2:] for path in pictures) == [(shard, f"00{index}.png") for index in range(5)]


def test_half_precision(single_process, surfaces, tmp_path):
    metrics, maps = {}, {}
    for precision in ("32-true", "bf16-mixed"):
        engine = quiet_engine(tmp_path / precision, precision=precision)
        (metrics[precision],) = engine.test(brick_model(), datamodule=surfaces(), verbose=False)
        bare = AnoVL("anovl-demo", domain="texture", class_name="brick", visualizer=False, post_processor=False)
        images = surfaces().root / "brick" / "test" / "crack"
        engine = quiet_engine(tmp_path / precision, precision=precision)
        maps[precision] = engine.predict(bare, data_path=images, return_predictions=True)
    for name in ("image_AUROC", "pixel_AUROC"):
        assert metrics["bf16-mixed"][name] == pytest.approx(single_process[name], abs=0.005)
    full, half = (torch.cat([batch.anomaly_map for batch in maps[precision]]) for precision in maps)
    assert_close(half, full, **HALF_PRECISION)
    assert not torch.equal(half, full)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_on_a_gpu(precision, single_process, surfaces, tmp_path):
    engine = quiet_engine(tmp_path, precision=precision)
    engine._cache.args["accelerator"] = "gpu"
    (metrics,) = engine.test(brick_model(), datamodule=surfaces(), verbose=False)
    for name in ("image_AUROC", "pixel_AUROC"):
        assert metrics[name] == pytest.approx(single_process[name], abs=0.005)


@pytest.mark.parametrize(
    "options",
    [{}, {"image_score": CombinedScore(["image", "flip", "rotate 30"])}, {"tiles_per_side": 1}],
    ids=["plain", "views", "tiles"],
)
def test_compiles_whole(options, weights_of):
    model = AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", **options)
    images = torch.rand(2, 3, 32, 50 if options.get("tiles_per_side") else 32)
    expected = model(images)
    # Only the graph can go wrong here; compiling it further takes minutes.
    found = torch.compile(model, backend="eager", fullgraph=True)(images)
    assert_close(found.pred_score, expected.pred_score)
    assert_close(found.anomaly_map, expected.anomaly_map)


def test_compiles_around_an_adaptation(weights_of):
    model = AnoVLModel(
        "tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", adaptation=TextAdapter()
    )
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    found = torch.compile(model, backend="eager")(images)
    assert_close(found.anomaly_map, expected.anomaly_map)
