"""Reference images on the engine and the command line: where they come from, and where they travel."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from anomalib import LearningType
from anomalib.data import Folder
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torch.testing import assert_close
from torchvision import transforms
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, RandomVerticalFlip, Resize

from anovl_plugin import AnoVL, AnoVLModel, LinearAdapter, MapScore, MultiCategory, PatchMemory, PatchSubspace
from anovl_plugin.components.checkpoints.settings import CheckpointError
from anovl_plugin.components.references.reference_images import ReferenceImageError
from anovl_plugin.config import to_config
from anovl_plugin.demo import DemoSurfaces
from anovl_plugin.scoring.references import bank_config
from tests.helpers import image_datasets
from tests.helpers.commands import ROOT, run
from tests.helpers.engine_runs import assert_same, quiet_engine, run_predict, run_test
from tests.helpers.tolerances import EXACT, EXPORTED, METRIC

PARTS = {
    "memory": PatchMemory(depths=[1]),
    "subspace": PatchSubspace(depths=[2]),
    "unlabelled": PatchMemory(unlabelled=True, value_wise=True),
}


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Return a folder of normal images."""
    folder = tmp_path_factory.mktemp("shots")
    image_datasets.write_images(folder, 4, seed=21)
    return folder


@pytest.fixture(scope="module")
def tested(make, bottles, tmp_path_factory):
    """Return a function that tests a model, and returns it with its checkpoint."""

    def test(**settings: object) -> tuple[AnoVL, Path]:
        root, model = tmp_path_factory.mktemp("tested"), make(**settings)
        run_test(model, root, bottles())
        (path,) = root.rglob("*.ckpt")
        return model, path

    return test


@pytest.fixture(scope="module")
def few(tested):
    return tested(k_shot=2)


def banks_of(model):
    return {bank.identity.class_name: bank for bank in model.model.reference_banks if bank.identity}


def test_learning_type(make, shots):
    assert make().learning_type == LearningType.ZERO_SHOT
    assert make(k_shot=1).learning_type == make(few_shot_source=shots).learning_type == LearningType.FEW_SHOT


def test_references_from_training_data(few):
    model, _ = few
    (bank,) = banks_of(model).values()
    assert (bank.identity.class_name, bank.identity.num_images) == ("bottle", 2)
    assert bank.settings == bank_config(to_config(PatchMemory()))


@pytest.mark.parametrize(("k_shot", "count"), [(0, 4), (3, 3)])
def test_references_from_a_folder(k_shot, count, make, shots, bare, tmp_path):
    model = make(few_shot_source=shots, k_shot=k_shot, class_name="bottle")
    run_predict(model, tmp_path, data_path=bare)
    assert banks_of(model)["bottle"].identity.num_images == count


def test_references_get_the_models_own_pre_processing(make, shots, bare, tmp_path):
    model = make(few_shot_source=shots, references=PatchMemory(weight=1), class_name="bottle", post_processor=False)
    # A reference image is at the distance 0 of itself.
    engine = quiet_engine(tmp_path)
    own = engine.predict(model, data_path=shots, return_predictions=True)
    other = engine.predict(model, data_path=bare, return_predictions=True)
    assert all(batch.anomaly_map.std() < 1e-4 for batch in own)
    assert all(batch.anomaly_map.std() > 1e-3 for batch in other)


@pytest.mark.parametrize(
    ("augmentations", "is_flipped"),
    [
        (RandomVerticalFlip(p=1), True),
        (transforms.Compose([transforms.RandomVerticalFlip(p=1)]), True),
        # anomalib resizes images as the model does instead.
        (Resize((8, 8)), False),
    ],
    ids=["module", "function", "resizing"],
)
def test_references_are_augmented_like_test_images(augmentations, is_flipped, make, tmp_path):
    image_datasets.write_mvtec(tmp_path)
    model = make(references=PatchMemory(weight=1), k_shot=2, class_name="bottle", post_processor=False, evaluator=False)
    good = tmp_path / "bottle" / "train" / "good"
    folders = {"normal_dir": good, "normal_test_dir": good, "val_split_mode": "none", "num_workers": 0}
    data = Folder("bottles", **folders, test_augmentations=augmentations)
    quiet_engine(tmp_path).test(model, data, verbose=False)
    bank = banks_of(model)["bottle"]
    # Without the data module, the same images are others.
    flipped = tmp_path / "flipped"
    flipped.mkdir()
    for path in good.iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(flipped / path.name)
    expected, others = (good, flipped)[is_flipped], (flipped, good)[is_flipped]
    for folder, is_same in ((expected, True), (others, False)):
        plain = make(references=PatchMemory(weight=1), k_shot=2, class_name="bottle", few_shot_source=folder)
        run_predict(plain, tmp_path, data_path=good)
        tokens = banks_of(plain)["bottle"].fitted["tokens_0"]
        assert torch.allclose(bank.fitted["tokens_0"], tokens, **EXACT) == is_same


def test_augmented_references_and_their_thresholds_outlast_the_test(make, shots, bottles, bare, tmp_path):
    model, data = make(few_shot_source=shots, class_name="bottle"), bottles()
    data.test_augmentations = RandomVerticalFlip(p=1)
    quiet_engine(tmp_path).test(model, data, verbose=False)
    threshold, bank = float(model.post_processor.image_threshold), banks_of(model)["bottle"]
    assert threshold != 0.5
    run_predict(model, tmp_path, data_path=bare)
    assert float(model.post_processor.image_threshold) == threshold
    assert banks_of(model)["bottle"] is bank


def test_another_pre_processor_makes_another_bank(make, shots, bare, tmp_path):
    def processor(side):
        size = torch.Size((32, 32))
        return PreProcessor(transform=Compose([CenterCrop(side), Resize(size), Normalize([0.5] * 3, [0.25] * 3)]))

    model = make(few_shot_source=shots, class_name="bottle", pre_processor=processor(24))
    run_predict(model, tmp_path, data_path=bare)
    model.pre_processor = processor(30)
    fresh = make(few_shot_source=shots, class_name="bottle", pre_processor=processor(30))
    assert_same(run_predict(model, tmp_path, data_path=bare), run_predict(fresh, tmp_path, data_path=bare))


def test_references_that_are_tested_are_told(make, bottles, tmp_path, caplog):
    tested = bottles().root / "bottle" / "test" / "good"
    run_test(make(few_shot_source=tested, k_shot=1), tmp_path, bottles())
    assert "1 of 1 reference images are also tested; they score lower than others" in caplog.text
    caplog.clear()
    run_test(make(k_shot=1), tmp_path, bottles())
    assert "also tested" not in caplog.text


def test_choice_and_results_are_the_same_every_time(make, shots, bare, tmp_path):
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(run_predict(make(few_shot_source=shots, k_shot=2, class_name="bottle"), tmp_path, data_path=bare))
    assert_same(*runs)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_checkpoint_brings_its_references(part, tested, bare, tmp_path):
    model, path = tested(k_shot=2, references=part)
    expected = run_predict(model, tmp_path, data_path=bare)
    found = AnoVL(visualizer=False)
    # There are no training data to predict a folder.
    assert_same(run_predict(found, tmp_path, data_path=bare, ckpt_path=path), expected)
    assert found.learning_type == LearningType.FEW_SHOT
    assert_same(run_predict(AnoVL.load_from_checkpoint(path, visualizer=False), tmp_path, data_path=bare), expected)


def test_a_checkpoint_of_a_folder_that_is_gone(make, shots, bottles, bare, tmp_path):
    moved = shutil.copytree(shots, tmp_path / "moved")
    model = make(few_shot_source=moved, tiles_per_side=1, adaptation=LinearAdapter(steps=1))
    run_test(model, tmp_path / "test", bottles())
    expected = run_predict(model, tmp_path, data_path=bare)
    (path,) = (tmp_path / "test").rglob("*.ckpt")
    shutil.rmtree(moved)
    assert_same(run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=path), expected)


def test_a_checkpoint_keeps_its_references_on_other_data(few, bottles, tmp_path):
    model, path = few
    other = image_datasets.mvtec(tmp_path / "other")
    image_datasets.write_images(tmp_path / "other" / "bottle" / "train" / "good", 2, seed=77)
    loaded = AnoVL(visualizer=False)
    run_test(loaded, tmp_path, other, ckpt_path=path)
    assert banks_of(loaded)["bottle"].identity == banks_of(model)["bottle"].identity
    # Without the checkpoint, other training images make another bank.
    run_test(model, tmp_path / "again", bottles())
    before = banks_of(model)["bottle"].identity
    run_test(model, tmp_path / "again", other)
    assert banks_of(model)["bottle"].identity.images != before.images


def test_zero_shot_checkpoints_have_no_references(tested, bare, tmp_path):
    _, path = tested()
    assert not any("reference" in name for name in torch.load(path, weights_only=True)["state_dict"])
    loaded = run_predict(AnoVL(visualizer=False), tmp_path, data_path=bare, ckpt_path=path)
    assert loaded.score.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_shot": 1}, "k_shot is 1, but the checkpoint was made with 2; omit k_shot, or change it on purpose"),
        (
            {"k_shot": 2, "references": PatchSubspace()},
            r"references is PatchSubspace\(.*, but the checkpoint was made with PatchMemory\(.*; omit references",
        ),
    ],
)
def test_contradictions_of_a_checkpoint(change, message, few, bare, tmp_path):
    with pytest.raises(CheckpointError, match=f"^{message}"):
        run_predict(AnoVL(visualizer=False, **change), tmp_path, data_path=bare, ckpt_path=few[1])


def test_agreeing_with_a_checkpoint(few, bare, tmp_path):
    same = {"k_shot": 2, "references": PatchMemory()}
    run_predict(AnoVL(visualizer=False, **same), tmp_path, data_path=bare, ckpt_path=few[1])


def test_one_folder_written_in_several_ways(make, shots, bottles, bare, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    image_datasets.write_images(elsewhere / shots.name, 4, seed=99)
    monkeypatch.chdir(shots.parent)
    model = make(few_shot_source=shots.name)
    run_test(model, tmp_path / "test", bottles())
    (path,) = (tmp_path / "test").rglob("*.ckpt")
    expected = run_predict(model, tmp_path, data_path=bare)
    (tmp_path / "link").symlink_to(shots)
    for folder in (shots, shots.name, f"./{shots.name}/", tmp_path / "link"):
        found = AnoVL(visualizer=False, few_shot_source=folder)
        assert_same(run_predict(found, tmp_path, data_path=bare, ckpt_path=path), expected)
    monkeypatch.chdir(elsewhere)
    # The folder of the checkpoint, and not the one of its name here.
    part = PatchMemory(weight=0.2, views=["image", "flip"])
    with pytest.warns(UserWarning, match="^references of the checkpoint changed on purpose"):
        changed = AnoVL.load_from_checkpoint(path, visualizer=False, references=part)
    assert changed.settings["few_shot_source"] == str(shots)
    fresh = make(few_shot_source=shots, class_name="bottle", references=part)
    assert_same(*(run_predict(each, tmp_path, data_path=bare) for each in (changed, fresh)))
    with pytest.raises(CheckpointError, match=r"^few_shot_source is '.*elsewhere.*, but the checkpoint was"):
        run_predict(AnoVL(visualizer=False, few_shot_source=shots.name), tmp_path, data_path=bare, ckpt_path=path)


@pytest.mark.filterwarnings("ignore:.* of the checkpoint changed on purpose")
def test_older_checkpoints_with_a_relative_folder(make, shots, bottles, bare, tmp_path, monkeypatch):
    model = make(few_shot_source=shots)
    run_test(model, tmp_path / "test", bottles())
    expected = run_predict(model, tmp_path, data_path=bare)
    (path,) = (tmp_path / "test").rglob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["_extra_state"]["settings"]["few_shot_source"] = shots.name
    torch.save(saved, path)
    monkeypatch.chdir(shots.parent)
    for folder in (shots, shots.name):
        found = AnoVL(visualizer=False, few_shot_source=folder)
        assert_same(run_predict(found, tmp_path, data_path=bare, ckpt_path=path), expected)
    score = AnoVL.load_from_checkpoint(path, visualizer=False, image_score=MapScore())
    assert banks_of(score)


@pytest.mark.filterwarnings("ignore:.* of the checkpoint changed on purpose")
def test_changing_a_checkpoint_on_purpose(few, tested, shots, bare, tmp_path):
    _, path = few
    same = AnoVL.load_from_checkpoint(path, visualizer=False, image_score=MapScore())
    assert banks_of(same)["bottle"].identity.num_images == 2
    run_predict(same, tmp_path, data_path=bare)
    # The bank does not depend on how results are averaged, and there are no training data to build it anew.
    part = PatchMemory(weight=0.5, top_fraction=0.1)
    averaged = AnoVL.load_from_checkpoint(path, visualizer=False, references=part)
    assert banks_of(averaged)["bottle"].identity.num_images == 2
    run_predict(averaged, tmp_path, data_path=bare)
    other = AnoVL.load_from_checkpoint(path, visualizer=False, few_shot_source=shots, k_shot=0)
    assert not banks_of(other)
    run_predict(other, tmp_path, data_path=bare)
    assert banks_of(other)["bottle"].identity.num_images == 4
    none = AnoVL.load_from_checkpoint(path, visualizer=False, k_shot=0)
    assert none.learning_type == LearningType.ZERO_SHOT
    run_predict(none, tmp_path, data_path=bare)
    _, zero = tested()
    more = AnoVL.load_from_checkpoint(zero, visualizer=False, few_shot_source=shots)
    run_predict(more, tmp_path, data_path=bare)
    assert banks_of(more)["bottle"].identity.num_images == 4


def test_each_class_has_its_own_references(make, tmp_path):
    for at, category in enumerate(("bottle", "cable")):
        image_datasets.write_mvtec(tmp_path / "data", category)
        image_datasets.write_images(tmp_path / "data" / category / "train" / "good", 3, seed=30 + at)
    one = image_datasets.MVTecAD(tmp_path / "data", "bottle", eval_batch_size=4, num_workers=0)
    model = make(k_shot=2)
    run_test(model, tmp_path, MultiCategory(one, ["bottle", "cable"]))
    found = banks_of(model)
    assert set(found) == {"bottle", "cable"}
    assert {bank.identity.num_images for bank in found.values()} == {2}
    tokens = [bank.fitted["tokens_0"] for bank in found.values()]
    assert not torch.equal(*tokens)
    alone = make(k_shot=2)
    run_test(alone, tmp_path / "alone", image_datasets.MVTecAD(tmp_path / "data", "cable", num_workers=0))
    assert_close(banks_of(alone)["cable"].fitted["tokens_0"], found["cable"].fitted["tokens_0"], **EXACT)
    (path,) = (tmp_path / "AnoVL").rglob("*.ckpt")
    cables = tmp_path / "data" / "cable" / "test" / "good"
    again = AnoVL(visualizer=False, class_name="cable")
    run_predict(again, tmp_path, data_path=cables, ckpt_path=path)
    assert set(banks_of(again)) == {"bottle", "cable"}


def test_a_folder_of_several_classes_has_one_for_each(make, tmp_path):
    for at, name in enumerate(("bottle", "cable")):
        image_datasets.write_images(tmp_path / "shots" / name, 2 + at, seed=at)
        image_datasets.write_images(tmp_path / "photos" / name, 1, seed=8 + at)
    model = make(few_shot_source=tmp_path / "shots", class_name={"bottle": "bottle", "cable": "cable"})
    run_predict(model, tmp_path, data_path=tmp_path / "photos")
    assert {name: bank.identity.num_images for name, bank in banks_of(model).items()} == {"bottle": 2, "cable": 3}
    shutil.rmtree(tmp_path / "shots" / "cable")
    model = make(few_shot_source=tmp_path / "shots", class_name={"bottle": "bottle", "cable": "cable"})
    message = r"^few_shot_source is '.*/shots', which has no folder 'cable', but images may show that class; give each"
    with pytest.raises(ReferenceImageError, match=message):
        run_predict(model, tmp_path, data_path=tmp_path / "photos")


def test_a_class_alone_takes_the_folder_of_its_name(make, bare, tmp_path):
    for at, name in enumerate(("bottle", "cable")):
        image_datasets.write_images(tmp_path / "shots" / name, 2 + at, seed=at)
    for name, count in {"bottle": 2, "cable": 3, "screw": 5}.items():
        model = make(few_shot_source=tmp_path / "shots", class_name=name)
        run_predict(model, tmp_path, data_path=bare)
        assert banks_of(model)[name].identity.num_images == count


def session_of(path: Path) -> Callable[[torch.Tensor], dict]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_exports_hold_the_references(part, tested, tmp_path):
    openvino = pytest.importorskip("openvino")
    model, _ = tested(k_shot=2, references=part)
    model.eval()
    images = torch.rand(3, 3, 40, 36)
    expected = model(images)
    path = model.to_onnx(tmp_path)
    # This graph is what an export to OpenVINO converts.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (session_of(path)(images), compiled(images.numpy())):
        for name in ("pred_score", "anomaly_map"):
            assert_close(torch.from_numpy(found[name]), getattr(expected, name), **EXPORTED)


def test_exports_with_tiles_hold_the_references(tested, tmp_path):
    model, _ = tested(k_shot=2, references=PatchMemory(), tiles_per_side=1)
    model.eval()
    images = torch.rand(2, 3, 40, 60)
    expected = model(images)
    found = session_of(model.to_onnx(tmp_path, input_size=(40, 60)))(images)
    for name in ("pred_score", "anomaly_map"):
        assert_close(torch.from_numpy(found[name]), getattr(expected, name), **EXPORTED)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_compiles_whole(part, weights_of):
    model = AnoVLModel("tiny-square", pretrained=weights_of("tiny-square"), class_name="bottle", references=part)
    images = torch.rand(2, 3, 32, 32)
    model.build_reference_bank([*torch.rand(3, 3, 32, 32)])
    expected = model(images)
    found = torch.compile(model, backend="eager", fullgraph=True)(images)
    assert_close(found.pred_score, expected.pred_score)
    assert_close(found.anomaly_map, expected.anomaly_map)


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    root = tmp_path_factory.mktemp("surfaces")
    DemoSurfaces(root, "grass").prepare_data()
    return root


@pytest.mark.parametrize(
    "arguments",
    [
        "--model.k_shot 2",
        "--model.few_shot_source {root}/grass/train/good --model.k_shot 2 --model.references PatchSubspace",
        (
            "--model.few_shot_source {root}/grass/train/good --model.references anovl_plugin.PatchMemory "
            "--model.references.views [image,flip] --model.references.coreset 0.01 --model.references.weight 0.4"
        ),
    ],
)
def test_command_line(arguments, surfaces, tmp_path):
    data = f"--data anovl_plugin.demo.DemoSurfaces --data.root {surfaces} --data.category grass"
    model = "--model AnoVL --model.backbone anovl-demo --model.domain texture --trainer.accelerator cpu"
    done = run(shlex.split(f"anomalib test {model} {arguments.format(root=surfaces)} {data}"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = dict(re.findall(r"(\w+_AUROC)\W+([\d.]+)", done.stdout))
    assert float(shown["image_AUROC"]) > 0.85
    assert float(shown["pixel_AUROC"]) > 0.9


def test_two_processes_give_the_same_as_one(surfaces, tmp_path):
    command = (
        f"anomalib test --config {ROOT}/configs/demo.yaml --data.root {surfaces} --data.category grass "
        "--model.k_shot 2 --trainer.accelerator cpu"
    )
    shown = []
    for processes in ("", " --trainer.devices 2 --trainer.strategy ddp"):
        done = run(shlex.split(command + processes), tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        shown.append(dict(re.findall(r"(\w+_(?:AUROC|F1Score))\W+([\d.]+)", done.stdout)))
    assert len(shown[0]) == 4
    for name, value in shown[0].items():
        assert float(shown[1][name]) == pytest.approx(float(value), **METRIC)


def test_half_precision_on_the_engine(surfaces, tmp_path):
    maps = []
    for precision in ("32-true", "bf16-mixed"):
        model = AnoVL(
            "anovl-demo",
            domain="texture",
            class_name="grass",
            few_shot_source=surfaces / "grass" / "train" / "good",
            k_shot=2,
            visualizer=False,
            post_processor=False,
        )
        engine = quiet_engine(tmp_path / precision, precision=precision)
        found = engine.predict(model, data_path=surfaces / "grass" / "test" / "crack", return_predictions=True)
        maps.append(torch.cat([batch.anomaly_map for batch in found]))
    assert_close(maps[1], maps[0], atol=5e-2, rtol=0)
    assert (maps[1] - maps[0]).abs().mean() < 5e-3


def test_a_user_says_k_shot_without_training_data(make, bare, tmp_path):
    with pytest.raises(
        ReferenceImageError, match=r"^k_shot takes reference images from training data, but there is no"
    ):
        run_predict(make(k_shot=2, class_name="bottle"), tmp_path, data_path=bare)


def test_too_few_training_images(make, bottles, tmp_path):
    message = r"^k_shot is 5, but the training data has 2 normal images; use fewer, or give more$"
    with pytest.raises(ReferenceImageError, match=message):
        run_test(make(k_shot=5), tmp_path, bottles())


def test_references_without_images(make):
    message = (
        "references is PatchMemory, but there are no reference images; set k_shot, to take them from training data"
    )
    with pytest.raises(ValueError, match=f"^{message}, or few_shot_source$"):
        make(references=PatchMemory()).build_text_bank()


def test_settings_are_plain_data(make):
    settings = make(k_shot=3, references=PatchSubspace(variance=0.5)).settings
    assert json.loads(json.dumps(settings["references"]))["init_args"]["variance"] == 0.5
    assert (settings["k_shot"], settings["few_shot_source"]) == (3, None)
