"""Training of the package's CLIP."""

import math
import shutil

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.demo.studies import train as training
from anovl_plugin.demo.studies.surfaces import FAMILIES
from anovl_plugin.demo.studies.train import (
    SCALE,
    Surfaces,
    UsedTokens,
    augment,
    class_loss,
    draw_captions,
    make_image,
    patch_targets,
    state_loss,
    train,
)
from anovl_plugin.vision.backbone import DEMO_BACKBONE
from tests.helpers.tolerances import EXACT

SETTINGS = {"steps": 3, "images": 24, "batch": 2, "learning_rate": 1e-3, "seed": 3, "save_every": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for a few steps and return the folder with data, checkpoint and weights."""
    folder = tmp_path_factory.mktemp("training")
    train(folder / "demo.safetensors", folder, **SETTINGS)
    return folder


@pytest.mark.slow
def test_open_clip_loads_the_weights(trained):
    clip = open_clip.create_model(DEMO_BACKBONE)
    # Not with `pretrained`, which accepts no .safetensors file in the oldest supported version.
    clip.load_state_dict(load_file(trained / "demo.safetensors"))
    assert clip.logit_scale.exp().item() == pytest.approx(SCALE, rel=1e-3)
    assert clip.encode_image(torch.rand(1, 3, 96, 96)).shape == (1, 96)
    used = clip.token_embedding.weight.any(1)
    assert 100 < used.sum() < 1000


@pytest.mark.slow
def test_images_are_stored(trained):
    surfaces = Surfaces(*torch.load(trained / "surfaces-24-3.pt"))
    assert surfaces.images.shape == (24, 3, 96, 96)
    for index in (0, 23):
        image, mask, family = make_image((3, index))
        assert_close(surfaces.images[index], torch.from_numpy(image).permute(2, 0, 1))
        assert_close(surfaces.masks[index], torch.from_numpy(mask))
        assert surfaces.families[index] == family


@pytest.mark.slow
def test_resumed_run_equals_unbroken_run(trained, tmp_path, monkeypatch):
    shutil.copy(trained / "surfaces-24-3.pt", tmp_path)
    step_as_it_is = training.training_step

    def break_off(clip, tower, surfaces, seed, batch):
        if seed[1] == 1:
            raise KeyboardInterrupt
        return step_as_it_is(clip, tower, surfaces, seed, batch)

    monkeypatch.setattr(training, "training_step", break_off)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "demo.safetensors", tmp_path, **SETTINGS)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 1
    assert not (tmp_path / "demo.safetensors").exists()
    monkeypatch.setattr(training, "training_step", step_as_it_is)
    train(tmp_path / "demo.safetensors", tmp_path, **SETTINGS)
    resumed, unbroken = load_file(tmp_path / "demo.safetensors"), load_file(trained / "demo.safetensors")
    assert_close(resumed, unbroken, **EXACT)


@pytest.mark.slow
def test_checkpoint_of_other_settings_is_an_error(trained):
    with pytest.raises(ValueError, match=r"is from a run with .*; use the same settings, or another work folder"):
        train(trained / "demo.safetensors", trained, **(SETTINGS | {"steps": 9}))


@pytest.mark.slow
def test_finished_run_writes_its_weights_again(trained):
    weights = load_file(trained / "demo.safetensors")
    train(trained / "again.safetensors", trained, **SETTINGS)
    assert_close(load_file(trained / "again.safetensors"), weights, **EXACT)


def test_make_image_depends_on_the_seed_alone():
    image, mask, family = make_image((1, 2), 48)
    assert (image.dtype, image.shape, mask.shape) == (np.uint8, (48, 48, 3), (48, 48))
    assert set(np.unique(mask)) <= {0, 1}
    assert 0 <= family < len(FAMILIES)
    again = make_image((1, 2), 48)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], mask)
    assert not np.array_equal(make_image((1, 3), 48)[0], image)


def test_state_loss_is_a_weighted_cross_entropy_of_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 7, generator=generator)
    states = F.normalize(torch.randn(2, 2, 7, generator=generator), dim=-1)
    target = torch.tensor([[1.0, 0.0, -1.0, 0.0, 1.0], [-1.0, 0.0, 0.0, 1.0, 0.0]])
    total = weights = 0.0
    for image, patch in np.ndindex(2, 5):
        wanted = target[image, patch].item()
        if wanted < 0:
            continue
        normal, abnormal = (F.cosine_similarity(features[image, patch], states[image, s], 0).item() for s in (0, 1))
        probability = 1 / (1 + math.exp(-SCALE * (abnormal - normal)))
        weight = 3.0 if wanted else 1.0
        total -= weight * math.log(probability if wanted else 1 - probability)
        weights += weight
    assert state_loss(features, states, target, 3.0).item() == pytest.approx(total / weights, rel=1e-4)


def test_class_loss_is_a_cross_entropy_over_the_nouns():
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 6, generator=generator)
    states = F.normalize(torch.randn(3, 2, 6, generator=generator), dim=-1)
    families, own = torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True])
    nouns = [(states[family, 0] + states[family, 1]) / 2 for family in range(3)]
    losses = []
    for index in (0, 2, 3):
        scores = {f: math.exp(SCALE * F.cosine_similarity(image[index], nouns[f], 0).item()) for f in (0, 2)}
        losses.append(-math.log(scores[families[index].item()] / sum(scores.values())))
    assert class_loss(image, states, families, own).item() == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_class_loss_without_nouns_is_zero_and_has_no_gradient():
    image = torch.randn(2, 6, requires_grad=True)
    loss = class_loss(image, torch.randn(3, 2, 6), torch.tensor([0, 1]), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not image.grad.any()


def test_patch_targets_follow_the_share_that_a_defect_covers():
    masks = torch.zeros(2, 12, 12, dtype=torch.uint8)
    masks[0, 0, 0] = 1
    masks[0, 4:8, 4:7] = 1
    masks[1, 8, 8:11] = 1
    found = patch_targets(masks, 4)
    assert found.shape == (2, 9)
    for image, row, column in np.ndindex(2, 3, 3):
        share = masks[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float().mean().item()
        assert found[image, 3 * row + column] == (1 if share >= 1 / 6 else -1 if share > 0 else 0)


def test_captions_are_in_both_states_of_every_family():
    sentences, own = draw_captions(np.random.default_rng(0), per_state=2)
    assert own.shape == (len(FAMILIES),)
    assert len(sentences) == len(FAMILIES) * 2 * 2
    words = [{word for state in states for word in state.replace("{}", "").split()} for states in training.STATES]
    for index, sentence in enumerate(sentences):
        abnormal = index // 2 % 2
        assert words[abnormal] & set(sentence.split())
        if own[index // 4]:
            assert any(noun in sentence for noun in list(FAMILIES.values())[index // 4].nouns)


@pytest.mark.parametrize("seed", range(4))
def test_augmentation_rotates_masks_with_images(seed):
    masks = torch.zeros(4, 16, 16, dtype=torch.uint8)
    masks[:, 2:6, 3:12] = 1
    surfaces = Surfaces((60 + 120 * masks)[:, None].expand(-1, 3, -1, -1), masks, torch.zeros(4, dtype=torch.long))
    images, turned = augment(surfaces, torch.tensor([3, 1]), np.random.default_rng(seed))
    assert images.shape == (2, 3, 16, 16)
    brightness = images.mean(1)
    middle = (brightness.amax((1, 2)) + brightness.amin((1, 2))) / 2
    assert_close(brightness > middle[:, None, None], turned.bool())


def test_used_tokens_are_embedded_as_by_the_whole_embedding():
    embedding, used = nn.Embedding(10, 3), torch.tensor([1, 4, 7])
    short = UsedTokens(embedding, used)
    tokens = torch.tensor([[1, 7], [4, 4]])
    assert_close(short(tokens), embedding(tokens))
    weight = short.full_weight()
    assert_close(weight[used], embedding.weight[used])
    weight[used] = 0
    assert not weight.any()
