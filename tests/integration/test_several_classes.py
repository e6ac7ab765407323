"""Several products in one run give what a run of each gives."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import Folder, MVTecAD, Visa
from torch.testing import assert_close

from anovl_plugin import AnoVL, MultiCategory
from anovl_plugin.components.checkpoints.settings import CheckpointError
from anovl_plugin.demo.datamodule import DemoSurfaces, make_category
from tests.helpers import image_datasets
from tests.helpers.commands import run
from tests.helpers.engine_runs import Predictions, assert_same, gather, quiet_engine, run_test
from tests.helpers.tolerances import EXPORTED

CLASSES = ("bottle", "cable")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return two categories in the layout of MVTec AD; the images of the second are inverted."""
    root = tmp_path_factory.mktemp("several")
    for category in CLASSES:
        image_datasets.write_mvtec(root, category)
    for path in (root / "cable").glob("t*/*/*.png"):
        image_datasets.write_png(path, 255 - image_datasets.read_png(path))
    return root


def categories(root: Path, *names: str, **options: object) -> MultiCategory:
    each = MVTecAD(root, names[0], **{"eval_batch_size": 3, "num_workers": 0, **options})
    return MultiCategory(each, list(names))


@pytest.fixture(scope="module")
def tested(make, root, tmp_path_factory):
    """Return a model that was tested on both categories, with its metrics and checkpoint."""
    folder = tmp_path_factory.mktemp("tested")
    model, engine = make(), quiet_engine(folder)
    (metrics,) = engine.test(model, datamodule=categories(root, *CLASSES), verbose=False)
    return model, metrics, Path(engine.trainer.checkpoint_callback.best_model_path)


@pytest.fixture(scope="module")
def alone(make, root, tmp_path_factory):
    """Return what a run of each category alone gives: model, metrics and predictions."""
    found = {}
    for category in CLASSES:
        folder, model = tmp_path_factory.mktemp(category), make()
        data = MVTecAD(root, category, eval_batch_size=3, num_workers=0)
        metrics = run_test(model, folder, data)
        found[category] = model, metrics, predict(model, folder, root / category / "test")
    return found


def predict(model: AnoVL, folder: Path, path: Path, **options: object) -> Predictions:
    return gather(quiet_engine(folder).predict(model, data_path=path, return_predictions=True, **options))


def test_metrics_and_thresholds_of_each_class_are_those_of_its_own_run(tested, alone):
    model, metrics, _ = tested
    assert model.model.text_banks.class_names == CLASSES
    for index, category in enumerate(CLASSES):
        own, expected, _ = alone[category]
        assert {name: metrics[f"{name}/{category}"] for name in expected} == expected
        statistics = model.post_processor.class_statistics
        assert statistics.image_threshold[index] == own.post_processor.image_threshold
        assert statistics.pixel_threshold[index] == own.post_processor.pixel_threshold
    for name in ("image_AUROC", "pixel_F1Score"):
        values = [metrics[f"{name}/{category}"] for category in CLASSES]
        assert metrics[f"{name}/mean"] == pytest.approx(sum(values) / 2)
        assert name in metrics


@pytest.mark.parametrize("class_name", ["from_folder", {"bottle": "bottle", "cable": "cable"}])
def test_predictions_on_a_tree_are_those_of_each_category(class_name, tested, alone, root, make, tmp_path):
    _, _, checkpoint = tested
    tree = tmp_path / "tree"
    for category in CLASSES:
        shutil.copytree(root / category / "test", tree / category)
    found = predict(make(class_name=class_name), tmp_path, tree, ckpt_path=checkpoint)
    # anomalib predicts the images of a folder in the order of their paths.
    half = len(found.score) // 2
    for category, rows in zip(CLASSES, (slice(half), slice(half, None)), strict=True):
        assert_same(Predictions(*(field[rows] for field in found)), alone[category][2])


def test_one_class_of_several_keeps_its_thresholds(tested, alone, root, make, tmp_path):
    _, _, checkpoint = tested
    found = predict(make(class_name="cable"), tmp_path, root / "cable" / "test", ckpt_path=checkpoint)
    assert_same(found, alone["cable"][2])
    loaded = AnoVL.load_from_checkpoint(checkpoint, class_name="cable", visualizer=False)
    assert_same(predict(loaded, tmp_path, root / "cable" / "test"), alone["cable"][2])


def test_checkpoint_must_be_told_which_image_shows_what(tested, root, make, tmp_path):
    _, _, checkpoint = tested
    said = r"^the model has text banks of 'bottle', 'cable', and nothing says which the images show; set class_name to"
    with pytest.raises(ValueError, match=said):
        predict(make(), tmp_path, root / "cable" / "test", ckpt_path=checkpoint)
    with pytest.raises(CheckpointError, match=r"^class_name is 'nut', but the checkpoint holds 'bottle', 'cable'; set"):
        predict(make(class_name="nut"), tmp_path, root / "cable" / "test", ckpt_path=checkpoint)
    (tmp_path / "other" / "nut").mkdir(parents=True)
    shutil.copy(next((root / "cable" / "test" / "good").iterdir()), tmp_path / "other" / "nut")
    with pytest.raises(
        CheckpointError, match=r"^class 'nut' \(from the folders\) is not in the checkpoint, only 'bott"
    ):
        predict(make(class_name="from_folder"), tmp_path, tmp_path / "other", ckpt_path=checkpoint)


def test_a_category_that_the_checkpoint_lacks_is_an_error(tested, root, make, tmp_path):
    _, _, checkpoint = tested
    image_datasets.write_mvtec(root, "nut")
    with pytest.raises(
        CheckpointError, match=r"^the data module's category is 'nut', but the checkpoint was made with "
    ):
        run_test(make(), tmp_path, categories(root, "bottle", "nut"), ckpt_path=checkpoint)
    shutil.rmtree(root / "nut")


def test_one_category_of_several_can_be_tested_with_the_checkpoint(tested, alone, root, make, tmp_path):
    _, metrics, checkpoint = tested
    data = MVTecAD(root, "cable", eval_batch_size=3, num_workers=0)
    assert run_test(make(), tmp_path, data, ckpt_path=checkpoint) == alone["cable"][1]
    again = run_test(make(), tmp_path, categories(root, *CLASSES), ckpt_path=checkpoint)
    assert again == metrics


def test_a_mixed_batch_gives_the_same(tested, root, make, tmp_path):
    _, metrics, _ = tested
    assert run_test(make(), tmp_path, categories(root, *CLASSES, eval_batch_size=12)) == pytest.approx(
        metrics, abs=1e-6
    )


def test_visa_layout(make, tmp_path):
    root = image_datasets.write_visa(tmp_path / "visa")
    data = MultiCategory(Visa(root, "candle", eval_batch_size=4, num_workers=0), ["candle"])
    model = make()
    metrics = run_test(model, tmp_path, data)
    assert model.model.text_banks.class_names == ("candle",)
    assert metrics == run_test(make(), tmp_path, Visa(root, "candle", eval_batch_size=4, num_workers=0))


def test_folder_tree(make, tmp_path):
    for seed, product in enumerate(("nut", "bolt")):
        image_datasets.write_images(tmp_path / "data" / product / "good", 4, seed=seed)
        image_datasets.write_images(tmp_path / "data" / product / "ok", 4, seed=5 + seed)
        image_datasets.write_images(tmp_path / "data" / product / "bad", 4, seed=9 + seed, abnormal=True)
    data = Folder(
        "parts",
        root=tmp_path / "data",
        normal_dir=["nut/good", "bolt/good"],
        normal_test_dir=["nut/ok", "bolt/ok"],
        abnormal_dir=["nut/bad", "bolt/bad"],
        num_workers=0,
        eval_batch_size=4,
        val_split_mode="same_as_test",
    )
    model = make(class_name="from_folder")
    metrics = run_test(model, tmp_path, data)
    assert model.model.text_banks.class_names == ("bolt", "nut")
    assert {"image_AUROC", "image_AUROC/nut", "image_AUROC/bolt", "image_AUROC/mean"} <= set(metrics)


def test_two_processes_and_the_command_line_give_the_same(tmp_path):
    data = tmp_path / "data"
    for category in ("brick", "wood"):
        make_category(data, category)
    words = (
        f"anomalib test --model AnoVL --model.backbone anovl-demo --model.domain texture --model.visualizer false "
        f"--data anovl_plugin.MultiCategory --data.datamodule anovl_plugin.demo.DemoSurfaces "
        f"--data.datamodule.root {data} --data.categories [brick,wood] --trainer.accelerator cpu"
    )
    found = []
    for more in ("", " --trainer.devices 2 --trainer.strategy ddp"):
        done = run(shlex.split(words + more), tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(dict(re.findall(r"(\w+_(?:AUROC|F1Score)(?:/\w+)?)\W+([\d.]+)", done.stdout)))
    assert found[0] == found[1]
    assert {"image_AUROC", "image_AUROC/brick", "image_AUROC/wood", "image_AUROC/mean"} <= set(found[0])


def test_mapping_that_misses_an_image_is_an_error_before_any_is_scored(make, root, tmp_path):
    for mapping in ({"bottle": "bottle"}, {"bottle": "bottle", "other": "nut"}):
        with pytest.raises(
            ValueError, match=r"test/\w+/000.png is in none of the folders that class_name maps to class"
        ):
            predict(make(class_name=mapping), tmp_path, root / "cable" / "test")


def test_references_are_those_of_the_class_whatever_else_the_run_shows(make, root, tmp_path):
    good = tmp_path / "good"
    for category in CLASSES:
        shutil.copytree(root / category / "train" / "good", good / category)
    tree = tmp_path / "tree"
    shutil.copytree(root / "cable" / "test" / "broken", tree / "cable")
    options = {"class_name": "from_folder", "few_shot_source": good}
    one = predict(make(**options), tmp_path, tree)
    shutil.copytree(root / "bottle" / "test" / "broken", tree / "bottle")
    both = predict(make(**options), tmp_path, tree)
    assert_same(Predictions(*(field[len(one.score) :] for field in both)), one)


def test_exported_torch_model_takes_the_class_of_each_image(tested, tmp_path):
    model, _, checkpoint = tested
    loaded = AnoVL.load_from_checkpoint(checkpoint, visualizer=False)
    images, index = torch.rand(3, 3, 40, 40), torch.tensor([1, 0, 1])
    exported = torch.load(loaded.to_torch(tmp_path), weights_only=False)["model"].eval()
    assert_close(exported(images, index).pred_score, model.eval()(images, index).pred_score)
    with pytest.raises(
        ValueError, match=r"^the model has text banks of 2 classes \('bottle', 'cable'\); pass the class_"
    ):
        exported(images)


def test_graph_of_several_classes_with_references_takes_any_batch(make, root, tmp_path):
    model = make(k_shot=2)
    run_test(model, tmp_path, categories(root, *CLASSES))
    session = onnxruntime.InferenceSession(model.to_onnx(tmp_path))
    for index in ([1], [0, 1, 1, 0]):
        images = torch.rand(len(index), 3, 40, 48)
        (score,) = session.run(["pred_score"], {"input": images.numpy(), "class_index": np.array(index)})
        assert_close(torch.from_numpy(score), model.eval()(images, torch.tensor(index)).pred_score, **EXPORTED)


def test_from_folder_outside_of_a_run_is_an_error(make):
    with pytest.raises(ValueError, match=r"^class_name is 'from_folder', but there is no run whose images tell the cl"):
        make(class_name="from_folder").build_text_bank()


def test_categories_must_be_names_of_a_data_module_that_has_some(root):
    data = MVTecAD(root, "bottle")
    for wrong, kind, said in (
        (
            "bottle",
            TypeError,
            r"^categories is 'bottle', but must be a list of category names, e.g. \[bottle, cable\]$",
        ),
        ([3], TypeError, r"^categories is \[3\], but must be a list"),
        ([], ValueError, r"^categories is \[\], but must be a list"),
        (["nut", "nut"], ValueError, r"^categories has 'nut' twice; name each category once$"),
    ):
        with pytest.raises(kind, match=said):
            MultiCategory(data, wrong)
    with pytest.raises(TypeError, match=r"^datamodule is 3, but must be one of anomalib's data modules, e.g. MVTecAD"):
        MultiCategory(3, ["bottle"])
    with pytest.raises(
        TypeError, match=r"^datamodule is a Folder without a category; use a folder for each class inst"
    ):
        MultiCategory(Folder("parts", root=root, normal_dir="bottle"), ["bottle"])
    with pytest.raises(ValueError, match=r"^category is 'steel', but must be one of brick, grass, gravel, wood$"):
        MultiCategory(DemoSurfaces(root), ["steel"]).prepare_data()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_exported_graph_takes_the_class_of_each_image(kind, tested, root, tmp_path):
    model, _, checkpoint = tested
    loaded = AnoVL.load_from_checkpoint(checkpoint, class_name={"bottle": "bottle", "cable": "cable"}, visualizer=False)
    paths = [root / category / "test" / "broken" / "000.png" for category in ("cable", "bottle", "cable")]
    images = torch.stack([torch.from_numpy(image_datasets.read_png(path)).permute(2, 0, 1) / 255 for path in paths])
    index = loaded.model.text_banks.index(["cable", "bottle", "cable"])
    loaded.build_text_bank()
    expected = loaded.eval()(images, index)
    if kind == "onnx":
        path = loaded.to_onnx(tmp_path)
        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        values = session.run(None, {"input": images.numpy(), "class_index": index.numpy()})
        found = dict(zip(names, values, strict=True))
    else:
        openvino = pytest.importorskip("openvino")
        path = loaded.to_openvino(tmp_path)
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        result = compiled({"input": images.numpy(), "class_index": index.numpy()})
        found = {output.any_name: result[output] for output in compiled.outputs}
    for name, value in expected._asdict().items():
        assert_close(torch.from_numpy(np.asarray(found[name])).float(), value.float(), **EXPORTED)
    names = json.loads((path.parent / "model.classes.json").read_text("utf-8"))
    assert tuple(names) == model.model.text_banks.class_names


def test_export_of_one_class_of_several_takes_images_alone(tested, alone, tmp_path):
    _, _, checkpoint = tested
    loaded = AnoVL.load_from_checkpoint(checkpoint, class_name="cable", visualizer=False)
    session = onnxruntime.InferenceSession(loaded.to_onnx(tmp_path, input_size=(40, 40)))
    for number in (1, 3):
        images = torch.rand(number, 3, 40, 40, generator=torch.Generator().manual_seed(0))
        score, *_ = session.run(["pred_score"], {"input": images.numpy()})
        assert_close(torch.from_numpy(score), alone["cable"][0].eval()(images).pred_score, **EXPORTED)
    assert not list(tmp_path.rglob("*.json"))
