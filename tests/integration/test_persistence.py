"""What outlives a run: copies, pickles, and what a checkpoint holds."""

import copy
import pickle
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from anomalib.pre_processing import PreProcessor
from torch.testing import assert_close
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anovl_plugin import AnoVL
from anovl_plugin.config import to_config
from anovl_plugin.scoring.image_score import GlobalScore
from tests.helpers import image_datasets
from tests.helpers.engine_runs import Predictions, assert_same, quiet_engine, run_predict, run_test
from tests.helpers.tolerances import EXACT


class Run(NamedTuple):
    """A test run and what it left behind."""

    model: AnoVL
    data: Path
    bare: Path
    metrics: dict[str, float]
    checkpoint: Path
    predictions: Predictions


def bottles(data: Path) -> image_datasets.MVTecAD:
    return image_datasets.MVTecAD(data, "bottle", eval_batch_size=4, num_workers=0)


@pytest.fixture(scope="module")
def run(make, tmp_path_factory):
    """Test a model on the bottles once; its predictions are of images without labels."""
    root = tmp_path_factory.mktemp("run")
    data, bare = image_datasets.write_mvtec(root / "data"), image_datasets.write_bare(root / "bare")
    model = make()
    metrics = run_test(model, root / "results", bottles(data))
    (checkpoint,) = (root / "results").rglob("weights/lightning/*.ckpt")
    return Run(model, data, bare, metrics, checkpoint, run_predict(model, root / "predicted", data_path=bare))


def test_checkpoint_holds_plain_data(run, weights_of):
    saved = torch.load(run.checkpoint, weights_only=True)
    settings = {
        "backbone": "tiny-square",
        "class_name": None,
        "domain": "auto",
        "pretrained": weights_of("tiny-square"),
        "image_size": None,
        "image_score": to_config(GlobalScore()),
        "tiles_per_side": None,
        "adaptation": None,
        "references": None,
        "k_shot": 0,
        "few_shot_source": None,
        "prompts": None,
        "cache": True,
        "save_backbone": False,
    }
    state = saved["state_dict"]
    assert saved["hyper_parameters"] == state["_extra_state"]["settings"] == settings
    bank = state["model.text_banks.0._extra_state"]
    assert (bank["class_name"], bank["domain"]) == ("bottle", "object")
    assert set(state["model.image_tower._extra_state"]) == {"source", "spec", "temperature", "fingerprint"}
    assert not [
        name for name in state if "text_tower" in name or "transformer.text" in name or "token_embedding" in name
    ]


def test_checkpoint_leaves_the_tower_out(run):
    saved = torch.load(run.checkpoint, weights_only=True)
    assert not [name for name in saved["state_dict"] if name.startswith("model.image_tower.visual.")]
    bank = run.model.model.text_bank.prompt_embeddings
    assert run.checkpoint.stat().st_size < bank.numel() * bank.element_size() + 50_000
    assert sum(weight.numel() for weight in run.model.model.image_tower.visual.parameters()) * 4 > 50_000


def test_load_from_checkpoint(run, tmp_path):
    loaded = AnoVL.load_from_checkpoint(run.checkpoint)
    assert loaded.model.text_bank.class_name == "bottle"
    assert_same(run_predict(loaded, tmp_path, data_path=run.bare), run.predictions)
    images = torch.rand(2, 3, 44, 44)
    assert_close(loaded.eval()(images).anomaly_map, run.model.eval()(images).anomaly_map, **EXACT)


def test_checkpoint_path_for_the_engine(run, make, tmp_path):
    assert run_test(make(), tmp_path, bottles(run.data), ckpt_path=run.checkpoint) == run.metrics
    found = run_predict(make(), tmp_path, data_path=run.bare, ckpt_path=run.checkpoint)
    assert_same(found, run.predictions)


def test_a_used_model_takes_a_checkpoint(run, make, tmp_path):
    model = make()
    run_test(model, tmp_path / "test", bottles(run.data))
    for name in ("one", "two"):
        found = run_predict(model, tmp_path / name, data_path=run.bare, ckpt_path=run.checkpoint)
        assert_same(found, run.predictions)


def test_loaded_model_learns_another_class(run, make):
    loaded, fresh = AnoVL.load_from_checkpoint(run.checkpoint), make()
    for model in (loaded, fresh):
        model.model.build_text_bank("cable")
    bank, expected = loaded.model.text_bank, fresh.model.text_bank
    assert_close(bank.state_embeddings, expected.state_embeddings, **EXACT)


def test_checkpoint_of_a_changed_model(run, weights_of, tmp_path):
    transform = Compose([Resize([32, 48], antialias=True), Normalize([0.5] * 3, [0.25] * 3)])
    model = AnoVL(
        "tiny-square",
        pretrained=Path(weights_of("tiny-square")),
        class_name="bolt",
        image_size=(32, 48),
        pre_processor=PreProcessor(transform),
        evaluator=False,
        visualizer=False,
    )
    quiet_engine(tmp_path).validate(model, datamodule=bottles(run.data), verbose=False)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    loaded = AnoVL.load_from_checkpoint(checkpoint)
    assert loaded.model.image_size == (32, 48)
    assert loaded.model.text_bank.class_name == loaded.settings["class_name"] == "bolt"
    assert loaded.evaluator is loaded.visualizer is None
    expected = run_predict(model, tmp_path / "one", data_path=run.bare)
    assert_same(run_predict(loaded, tmp_path / "two", data_path=run.bare), expected)


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies(ready, clone, make):
    model = make(class_name="bolt")
    if ready:
        model.build_text_bank()
    images = torch.rand(2, 3, 32, 32)
    other = clone(model)
    assert_close(other(images).anomaly_map, model(images).anomaly_map, **EXACT)
    other.model.build_text_bank("nut")
    assert model.model.text_bank.class_name == "bolt"
    assert not torch.equal(other(images).anomaly_map, model(images).anomaly_map)


def test_there_is_nothing_to_save_before_the_first_run(make):
    with pytest.raises(
        RuntimeError, match=r"^there is no text bank to save yet; validate, test or call build_text_bank"
    ):
        make().on_save_checkpoint({"state_dict": {}, "hyper_parameters": {}})
