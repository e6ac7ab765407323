"""The study of the names of defects: which regions are compared, and what fitting words changes."""

import pytest
import torch
from PIL import Image

from anovl_plugin import AnoVLModel, TextTower, load_backbone
from anovl_plugin.demo.studies.defect_names import (
    BOARD_WORDS,
    SURFACE_WORDS,
    Scene,
    accuracy,
    banks_of,
    board_scenes,
    formulas,
    prompts_with,
    split,
    surface_scenes,
    touching,
)
from anovl_plugin.demo.studies.fit_words import fit_words


@pytest.fixture
def model():
    model = AnoVLModel("anovl-demo", prompts=prompts_with(SURFACE_WORDS))
    model.load()
    return model


def test_predicted_regions_have_the_kind_they_touch_most():
    labels = torch.tensor([[1, 1, 0, 2, 2, 0, 3]])
    truth = [torch.tensor([[1, 0, 0, 0, 0, 0, 0]]).bool(), torch.tensor([[0, 1, 1, 1, 1, 0, 0]]).bool()]
    assert touching(truth, [4, 2], labels) == {1: 4, 2: 2}


def test_regions_of_surfaces(model, tmp_path, monkeypatch):
    monkeypatch.setattr("anovl_plugin.demo.studies.defect_names.PHOTOGRAPHS", ["wood"])
    scenes = split(surface_scenes(model, tmp_path, 0))
    for of_kind in scenes.values():
        assert {kind for scene in of_kind for kind in scene.kinds} == {0, 1, 2, 3, 4}
        for scene in of_kind:
            assert scene.weights.shape == (len(scene.kinds), 144)
            torch.testing.assert_close(scene.weights.sum(1), torch.ones(len(scene.kinds)))
            torch.testing.assert_close(scene.tokens.norm(dim=1), torch.ones(144))


def test_boxes_of_boards(tmp_path):
    (tmp_path / "group").mkdir()
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "group" / "1_test.jpg")
    (tmp_path / "group" / "1.txt").write_text("0 0 8 8 1\n32 32 40 48 6\n", encoding="utf-8")
    model = AnoVLModel("anovl-demo", tiles_per_side=8, prompts=prompts_with(BOARD_WORDS))
    ((scene, _),) = board_scenes(model, tmp_path)
    assert scene.kinds == [0, 5]
    assert scene.class_name == "circuit board"
    first = scene.weights[0].view(-1, 144)
    assert first[0].sum() > 0
    assert not first[-1].any()


def test_accuracy_is_the_share_of_regions_with_the_right_word_first(model):
    loaded = load_backbone("anovl-demo")
    banks = banks_of(TextTower(loaded.clip, loaded.tokenizer), ["brick"], "texture", model.prompts)
    words = banks["brick"].defect_embeddings
    scene = Scene(words.clone(), torch.eye(len(words)), [0, 1, 2, 3, 4], "brick")
    assert accuracy([scene], banks, lambda *_: torch.eye(5)) == 1
    assert accuracy([scene], banks, lambda *_: torch.eye(5)[[0, 1, 3, 4, 2]]) == 0.4
    for formula in formulas(0.1).values():
        assert formula(scene.tokens, scene.weights, words, banks["brick"].state_embeddings[0]).shape == (5, 5)


@pytest.mark.slow
def test_fitting_changes_only_the_words(model):
    loaded, before = load_backbone("anovl-demo"), load_backbone("anovl-demo")
    tower = TextTower(loaded.clip, loaded.tokenizer)
    assert banks_of(tower, ["brick"], "texture", model.prompts)["brick"].indistinct_words()
    fit_words(model, tower, SURFACE_WORDS, count=20, steps=2)
    assert not banks_of(tower, ["brick"], "texture", model.prompts)["brick"].indistinct_words()
    changed = [
        name for name, weight in loaded.clip.state_dict().items() if not weight.equal(before.clip.state_dict()[name])
    ]
    assert changed == ["token_embedding.weight"]
    rows = (loaded.clip.token_embedding.weight != before.clip.token_embedding.weight).any(1)
    assert int(rows.sum()) == 6
    assert not before.clip.token_embedding.weight[rows].any()
