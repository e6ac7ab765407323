"""The text banks of several classes."""

import re

import pytest
import torch

from anovl_plugin import AnoVLModel
from anovl_plugin.text.text_banks import TextBanks
from tests.helpers.adaptations import make_text_bank


@pytest.fixture
def banks():
    banks = TextBanks()
    banks.replace([make_text_bank(8, seed=seed) for seed in (1, 2, 3)])
    for bank, name in zip(banks, ("bottle", "nut", "screw"), strict=True):
        bank.class_name = name
    return banks


def test_banks_are_in_the_order_of_their_indices(banks):
    assert banks.class_names == ("bottle", "nut", "screw")
    assert banks.index(["screw", "bottle", "screw"]).tolist() == [2, 0, 2]
    assert torch.equal(banks.state_embeddings[1], banks[1].state_embeddings)
    with pytest.raises(ValueError, match=r"^there is no text bank of class 'cup', only of 'bottle', 'nut', 'screw'$"):
        banks.index(["nut", "cup"])


@pytest.mark.parametrize("number", [1, 2, 5])
def test_state_dict_may_hold_any_number(banks, number):
    loaded = TextBanks()
    loaded.replace([make_text_bank(8) for _ in range(number)])
    loaded.load_state_dict(banks.state_dict())
    assert loaded.class_names == banks.class_names
    assert torch.equal(loaded.state_embeddings, banks.state_embeddings)


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (None, ValueError, "the model has text banks of 3 classes ('bottle', 'nut', 'screw'); pass the class_index of"),
        ([0, 1], TypeError, "class_index is list, but must be a tensor of integers, e.g. model.text_banks.index("),
        (torch.tensor([0.0, 1.0]), TypeError, "class_index is torch.float32, but must be a tensor of integers"),
        (torch.tensor([0]), ValueError, "class_index has the shape (1,), but must have one index per image, (2,)"),
        (torch.tensor([0, 3]), ValueError, "class_index has values from 0 to 3, but must lie in 0 to 2, the indices"),
        (torch.tensor([-1, 0]), ValueError, "class_index has values from -1 to 0, but must lie in 0 to 2"),
    ],
)
def test_wrong_indices_are_errors(banks, index, kind, message):
    with pytest.raises(kind, match="^" + re.escape(message)):
        banks.check_index(index, torch.zeros(2, 3, 4, 4))


def test_model_compares_each_image_with_its_own_class():
    model = AnoVLModel("anovl-demo")
    assert model.build_text_banks(["brick", "grass", "wood"]) == ["brick", "grass", "wood"]
    images = torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([2, 0, 2, 1, 0])
    found = model(images, index)
    for number, class_name in enumerate(model.text_banks.class_names):
        alone = AnoVLModel("anovl-demo", class_name=class_name)
        rows = index == number
        expected = alone(images[rows])
        assert torch.equal(found.pred_score[rows], expected.pred_score)
        assert torch.equal(found.anomaly_map[rows], expected.anomaly_map)
    with pytest.raises(ValueError, match=r"pass the class_index of each image$"):
        model(images)
    assert model(images[:0], index[:0]).pred_score.shape == (0,)


def test_model_keeps_the_banks_that_it_has():
    model = AnoVLModel("anovl-demo", class_name="brick")
    brick = model.text_bank
    assert model.build_text_banks(["grass", "brick", "grass"]) == ["grass"]
    assert model.text_banks.class_names == ("grass", "brick")
    assert model.text_banks[1] is brick
    assert model.build_text_banks(["brick"]) == []
    assert model.text_banks.class_names == ("brick",)
    for wrong in ([], "brick"):
        with pytest.raises(ValueError, match=r"^class_names is .+, but must be a list of at least one class; use e.g."):
            model.build_text_banks(wrong)


def test_cached_banks_need_no_text_tower(monkeypatch):
    built = AnoVLModel("anovl-demo", class_name="brick")

    def fail(*_: object) -> None:
        pytest.fail("the text tower was loaded")

    monkeypatch.setattr("anovl_plugin.banked_clip._load_text_tower", fail)
    monkeypatch.setattr("anovl_plugin.banked_clip._text_tower_of", fail)
    again = AnoVLModel("anovl-demo", class_name="brick")
    assert torch.equal(again.text_bank.state_embeddings, built.text_bank.state_embeddings)
    assert again.is_loaded
    with pytest.raises(pytest.fail.Exception, match="the text tower was loaded"):
        AnoVLModel("anovl-demo", class_name="brick", cache=False)
