"""The same weights, tokens and text on an older open_clip.

``ANOVL_OLD_OPEN_CLIP`` names a folder that holds its package, as ``pip install --no-deps --target FOLDER
open_clip_torch==2.24.0`` makes it. Versions before 2.27 cannot read safetensors themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin.torch_model import AnoVLModel
from tests.helpers import reference_model
from tests.helpers.architectures import ARCHITECTURES, TINY
from tests.helpers.tolerances import REFERENCE

FOLDER = os.environ.get("ANOVL_OLD_OPEN_CLIP")
ROOT = Path(__file__).parents[2]
# Writes the results of the older open_clip, and of the package on it, for images and sentences.
SCRIPT = """
import sys, torch, open_clip
from anovl_plugin.vision.backbone import load_backbone
from anovl_plugin.text.text_tower import TextTower
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.value_attention import value_wise_forward

architectures, folder, out, *names = sys.argv[1:]
open_clip.add_model_config(architectures)
results = {"home": open_clip.__file__}
for name in names:
    weights = f"{folder}/{name}.safetensors"
    loaded = load_backbone(name, weights)
    images = torch.randn(2, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))
    tokens = value_wise_forward(loaded.visual, images)
    tower, sentences = TextTower(loaded.clip, loaded.tokenizer), ["a photo", "rust on a metal_nut"]
    model = AnoVLModel(name, pretrained=weights, class_name="bottle")
    results[name] = {
        "images": images, "image": tokens.class_token, "local": tokens.patch_tokens, "open_clip": loaded.visual(images),
        "truncated": tower.encode(sentences), "full": tower.encode(sentences, truncate_context=False),
        "states": model.text_bank.state_embeddings, **model(images)._asdict(),
    }
torch.save(results, out)
"""


@pytest.fixture(scope="module")
def results(weights_of, tmp_path_factory):
    if not FOLDER:
        pytest.skip("needs a folder with an older open_clip; set ANOVL_OLD_OPEN_CLIP to it")
    out = tmp_path_factory.mktemp("old") / "results.pt"
    folder = {str(Path(weights_of(name)).parent) for name in TINY}.pop()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([FOLDER, str(ROOT)])}
    command = [sys.executable, "-c", SCRIPT, str(ARCHITECTURES), folder, str(out), *TINY]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return torch.load(out)


def test_the_older_package_was_really_used(results):
    assert Path(results["home"]).is_relative_to(Path(FOLDER).resolve())


@pytest.mark.parametrize("name", TINY)
def test_both_paths_equal_the_reference_and_that_open_clip(name, results, weights_of):
    found = results[name]
    image, local = reference_model.vision_tokens(
        reference_model.load(name, weights_of(name))[0].visual, found["images"]
    )
    assert_close(found["image"], found["open_clip"], **REFERENCE)
    assert_close(found["image"], image.float(), **REFERENCE)
    assert_close(found["local"], local.float(), **REFERENCE)


@pytest.mark.parametrize("name", TINY)
def test_a_truncated_context_gives_the_same_as_the_full_one(name, results):
    assert_close(results[name]["truncated"], results[name]["full"], **REFERENCE)


@pytest.mark.parametrize("name", TINY)
def test_model_gives_the_same_on_this_open_clip(name, results, weights_of):
    found, model = results[name], AnoVLModel(name, pretrained=weights_of(name), class_name="bottle")
    here = model(found["images"])
    assert_close(found["states"], model.text_bank.state_embeddings, **REFERENCE)
    assert_close(found["pred_score"], here.pred_score, **REFERENCE)
    assert_close(found["anomaly_map"], here.anomaly_map, **REFERENCE)
