"""Prompts of one's own, from Python, a configuration file and the command line."""

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin import AnoVLModel
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.text.text_bank import hash_prompts
from tests.helpers.commands import ROOT, ReadingCLI, run
from tests.helpers.tolerances import EXACT

OWN = {"extends": "paper", "nouns": {"01": "brick"}, "defects": ["scratch", "missing part"]}
TEXT = "extends: paper\nnouns: {'01': brick}\ndefects: [scratch, missing part]\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_a_file_a_mapping_and_prompts_make_the_same_bank(file):
    banks = []
    for prompts in (file, str(file), OWN, Prompts.load(OWN)):
        model = AnoVLModel("anovl-demo", class_name="01", domain="texture", prompts=prompts)
        banks.append(model.text_bank)
        assert model.prompts == Prompts.load(OWN)
    assert banks[0].prompts_hash == hash_prompts(Prompts.load(OWN).ensemble("01", "texture"))
    assert banks[0].prompt_embeddings.shape[0] == 3 * 22 * (7 + 7 + 2)
    for bank in banks[1:]:
        assert_close(bank.state_embeddings, banks[0].state_embeddings, **EXACT)


def test_a_noun_gives_what_the_class_of_that_name_gives():
    named = AnoVLModel("anovl-demo", class_name="brick", domain="texture")
    numbered = AnoVLModel(
        "anovl-demo", class_name="01", domain="texture", prompts={"extends": "paper", "nouns": {"01": "brick"}}
    )
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert_close(numbered(images), named(images), **EXACT)


@pytest.mark.parametrize("form", ["file", "mapping"])
def test_a_configuration_holds_prompts(form, file, tmp_path):
    prompts = str(file) if form == "file" else OWN
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {{class_path: AnoVL, init_args: {{backbone: anovl-demo, prompts: {prompts!r}}}}}\n")
    words = ["predict", "--config", str(config), "--data", str(ROOT / "docs" / "images")]
    parsed = ReadingCLI(words, run=False).config["predict"].model.init_args.prompts
    assert Prompts.load(parsed) == Prompts.load(OWN)


def test_the_command_line_takes_a_file(file, tmp_path):
    command = ["anomalib", "predict", "--model", "AnoVL", "--model.backbone", "anovl-demo", "--model.class_name", "01"]
    command += ["--model.domain", "texture", "--model.visualizer", "false", "--data", str(ROOT / "docs" / "images")]
    done = run([*command, "--model.prompts", file.name], tmp_path)
    assert done.returncode == 0, done.stderr
    file.write_text(TEXT.replace("missing part", "scratch"))
    done = run([*command, "--model.prompts", file.name], tmp_path)
    assert done.returncode != 0
    assert "own.yaml" in done.stderr
    assert "line 3" in done.stderr
