"""Text banks on disk: found by all that they depend on, and never trusted, needed or in the way."""

import os
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anovl_plugin.text.cache import TextBankCache, tower_fingerprint
from anovl_plugin.text.prompts import Prompts
from anovl_plugin.text.text_bank import TextBank
from anovl_plugin.text.text_tower import TextTower
from anovl_plugin.vision.backbone import load_backbone

SHORT = Prompts.load(
    {"normal_states": ["good {}"], "abnormal_states": ["bad {}"], "templates": ["a {}"], "domains": {"any": ["-"]}}
)


@pytest.fixture
def tower(weights_of):
    loaded = load_backbone("tiny-square", weights_of("tiny-square"), image=False)
    return TextTower(loaded.clip, loaded.tokenizer)


@pytest.fixture
def bank(tower):
    bank = TextBank()
    bank.build(tower, "nut", prompts=SHORT)
    return bank


@pytest.fixture
def cache(tmp_path):
    return TextBankCache(tmp_path / "cache")


def only_file(cache):
    (path,) = cache.folder.iterdir()
    return path


def test_a_bank_comes_back_bit_by_bit(cache, bank):
    cache.save("f", bank)
    again = cache.load("f", "nut", prompts=SHORT)
    assert torch.equal(again.state_embeddings, bank.state_embeddings)
    assert torch.equal(again.prompt_embeddings, bank.prompt_embeddings)
    assert again.get_extra_state() == bank.get_extra_state()
    assert again.is_for("nut", "any", SHORT)


def test_a_bank_is_found_by_its_tower_and_its_sentences(cache, bank):
    cache.save("f", bank)
    assert cache.load("g", "nut", prompts=SHORT) is None
    assert cache.load("f", "bolt", prompts=SHORT) is None
    assert cache.load("f", "nut") is None
    assert cache.load(None, "nut", prompts=SHORT) is None
    # Another class and file that make the same sentences.
    same = Prompts.load({**SHORT.to_dict(), "nouns": {"01": "nut"}})
    assert cache.load("f", "01", prompts=same).class_name == "01"


def test_defects_come_back_and_count(cache, tower):
    words = Prompts.load({**SHORT.to_dict(), "defects": ["rust", "scratch"]})
    states = Prompts.load({**SHORT.to_dict(), "abnormal_states": ["bad {}", "{} with rust", "{} with scratch"]})
    assert words.ensemble("nut") == states.ensemble("nut")
    bank = TextBank()
    bank.build(tower, "nut", prompts=words)
    cache.save("f", bank)
    assert cache.load("f", "nut", prompts=states) is None
    again = cache.load("f", "nut", prompts=words)
    assert again.defect_words == ("rust", "scratch")
    assert torch.equal(again.defect_embeddings, bank.defect_embeddings)


def test_a_bank_of_another_precision_is_another(cache, bank, monkeypatch):
    cache.save("f", bank)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert cache.load("f", "nut", prompts=SHORT) is None


def test_a_bank_without_identity_is_not_stored(cache, bank):
    cache.save(None, bank)
    cache.save("f", TextBank())
    assert not cache.folder.exists()


def test_fingerprint_is_of_all_that_changes_embeddings(tower, weights_of):
    changed = [tower, *(deepcopy(tower) for _ in range(4))]
    with torch.no_grad():
        changed[1].clip.ln_final.bias[0] += 1e-6
    changed[2].clip.transformer.resblocks[0].attn.num_heads *= 2
    changed[3].tokenizer.encoder["rust</w>"] += 1
    changed[4].clip.ln_final.eps *= 2
    assert len({tower_fingerprint(each) for each in changed}) == 5
    loaded = load_backbone("tiny-square", weights_of("tiny-square"))
    again = TextTower(loaded.clip, loaded.tokenizer)
    again.encode(["a photo"])
    assert tower_fingerprint(again) == tower_fingerprint(tower)


def test_a_tokenizer_without_a_vocabulary_has_no_fingerprint(tower):
    assert tower_fingerprint(TextTower(tower.clip, lambda prompts: torch.zeros(len(prompts), 77))) is None


def test_vocabulary_of_a_wrapped_tokenizer_counts(tower):
    class Wrapped:
        def __init__(self, vocabulary):
            self.tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary)

        def __call__(self, prompts):
            return torch.zeros(len(prompts), 77, dtype=torch.long)

    one, other = (tower_fingerprint(TextTower(tower.clip, Wrapped({"rust": token}))) for token in (1, 2))
    assert one is not None
    assert one != other


# Damage.


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda path: path.write_bytes(b""), lambda path: path.write_text("x" * 99)]
)
def test_a_damaged_file_is_one_warning_and_is_replaced(cache, bank, damage):
    cache.save("f", bank)
    damage(only_file(cache))
    message = r"^the cached text bank .*\.safetensors cannot be used \(.*\), so it is built again$"
    with pytest.warns(UserWarning, match=message) as caught:
        assert cache.load("f", "nut", prompts=SHORT) is None
    assert len(caught) == 1
    cache.save("f", bank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cache.load("f", "nut", prompts=SHORT).state_embeddings, bank.state_embeddings)


def test_a_file_of_another_bank_is_not_taken_for_it(cache, bank):
    cache.save("f", bank)
    path = only_file(cache)
    cache.save("g", bank)
    (other,) = {*cache.folder.iterdir()} - {path}
    shutil.copy(other, path)
    with pytest.warns(UserWarning, match="its checksum is not that of its content"):
        assert cache.load("f", "nut", prompts=SHORT) is None


# Disks.


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, bank):
    (tmp_path / "file").touch()
    cache = TextBankCache(tmp_path / "file" / "cache")
    cache.save("f", bank)
    cache.remember(tmp_path / "file", "tiny", "0" * 64)
    with pytest.warns(UserWarning, match="cannot be used"):
        cache.load("f", "nut", prompts=SHORT)
    assert cache.recall(tmp_path / "file", "tiny") is None


def test_a_full_disk_leaves_no_file(cache, bank, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    cache.save("f", bank)
    assert not list(cache.folder.iterdir())


def test_the_files_used_last_are_kept(tmp_path, bank):
    cache = TextBankCache(tmp_path, max_files=2)
    for age, fingerprint in enumerate("abc"):
        cache.save(fingerprint, bank)
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
        if fingerprint == "b":
            cache.load("a", "nut", prompts=SHORT)
        assert len(list(tmp_path.iterdir())) == min(age + 1, 2)
    assert [cache.load(each, "nut", prompts=SHORT) is not None for each in "abc"] == [True, False, True]


WRITER = """
import sys
from pathlib import Path
from anovl_plugin.text.cache import TextBankCache
from anovl_plugin.text.text_bank import TextBank
import torch
bank = TextBank()
bank.load_state_dict(torch.load(sys.argv[2], weights_only=True))
for _ in range(30):
    TextBankCache(Path(sys.argv[1])).save("f", bank)
"""


def test_two_processes_read_only_whole_files(cache, bank, tmp_path):
    # Large enough to be written in several steps.
    bank.prompt_embeddings = torch.rand(924, 640)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    command = [sys.executable, "-c", WRITER, str(cache.folder), str(tmp_path / "bank.pt")]
    with warnings.catch_warnings(), subprocess.Popen(command) as process:
        warnings.simplefilter("error")
        reads = 0
        while process.poll() is None or not reads:
            again = cache.load("f", "nut", prompts=SHORT)
            if again is not None:
                assert torch.equal(again.prompt_embeddings, bank.prompt_embeddings)
                cache.save("f", bank)
                reads += 1
    assert process.returncode == 0
    assert only_file(cache).suffix == ".safetensors"


# Which tower a file of weights holds.


def test_a_fingerprint_is_remembered_for_the_very_file(cache, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    assert cache.recall(weights, "tiny") is None
    cache.remember(weights, "tiny", None)
    assert cache.recall(weights, "tiny") is None
    cache.remember(weights, "tiny", "ab" * 32)
    assert cache.recall(weights, "tiny") == "ab" * 32
    assert cache.recall(weights, "other") is None
    assert cache.recall(tmp_path / "none.pt", "tiny") is None
    os.utime(weights, ns=(1, 1))
    assert cache.recall(weights, "tiny") is None


@pytest.mark.parametrize("content", [b"", b"ab" * 31, b"xy" * 32, b"\xff"])
def test_a_damaged_memory_is_no_memory(cache, tmp_path, content):
    cache.remember(tmp_path, "tiny", "ab" * 32)
    only_file(cache).write_bytes(content)
    assert cache.recall(tmp_path, "tiny") is None


def test_the_default_folder_is_that_of_the_variable_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOVL_CACHE", str(tmp_path / "own"))
    assert TextBankCache().folder == tmp_path / "own"
    monkeypatch.delenv("ANOVL_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    assert TextBankCache().folder == tmp_path / "anovl_plugin"
