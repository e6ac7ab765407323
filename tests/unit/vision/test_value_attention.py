"""Both paths of value-wise attention against the slow reference and against open_clip."""

from copy import deepcopy

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from anovl_plugin.vision.backbone import check_visual
from anovl_plugin.vision.value_attention import (
    VisionTokens,
    attention_residuals,
    class_token_forward,
    embed_patches,
    value_wise_forward,
)
from tests.helpers import reference_model
from tests.helpers.architectures import TINY
from tests.helpers.random_tensors import images_for
from tests.helpers.tolerances import FLOAT32, REFERENCE


def perturbed(module, seed=0):
    """Return a copy in float32 with all weights perturbed, because many are initialized to 0 or 1."""
    copy, generator = deepcopy(module).float().requires_grad_(False), torch.Generator().manual_seed(seed)
    for weight in copy.parameters():
        weight.add_(0.1 * weight.std(correction=0).clamp(min=0.2) * torch.randn(weight.shape, generator=generator))
    return copy


@pytest.fixture(scope="module", params=TINY)
def clip(request, weights_of):
    return perturbed(reference_model.load(request.param, weights_of(request.param))[0])


@pytest.fixture(scope="module")
def visual(weights_of):
    return perturbed(reference_model.load("tiny-square", weights_of("tiny-square"))[0].visual)


def changed(visual, key, part=slice(None)):
    """Copy a tower and disturb (a part of) one of its weights."""
    copy = deepcopy(visual)
    weight = copy.get_parameter(key)
    weight[part] += 0.3 * torch.randn(weight[part].shape, generator=torch.Generator().manual_seed(1))
    return copy


def shortened(visual, layers=1):
    copy = deepcopy(visual)
    del copy.transformer.resblocks[layers:]
    return copy


@pytest.mark.parametrize("depths", [(1,), (2, 1), "last", "all"])
def test_tokens_of_blocks_equal_the_reference(clip, depths):
    layers = len(clip.visual.transformer.resblocks)
    depths = {"last": (layers,), "all": tuple(range(1, layers + 1))}.get(depths, depths)
    images = images_for(clip.visual, 2)
    tokens, without = value_wise_forward(clip.visual, images, depths), value_wise_forward(clip.visual, images)
    expected = reference_model.block_tokens(deepcopy(clip.visual).double(), images, depths).float()
    assert_close(tokens.block_tokens, expected, atol=1e-4, rtol=1e-4)
    assert without.block_tokens is None
    assert_close(tokens[:2], without[:2], **FLOAT32)


def test_both_paths_equal_the_reference(clip):
    images = images_for(clip.visual, 3)
    tokens = value_wise_forward(clip.visual, images)
    image, local = reference_model.vision_tokens(clip.visual, images)
    assert tokens.patch_tokens.dtype == tokens.class_token.dtype == torch.float32
    assert_close(tokens.class_token, image.float(), **REFERENCE)
    assert_close(tokens.patch_tokens, local.float(), **REFERENCE)


def test_the_original_path_is_that_of_open_clip(clip):
    images = images_for(clip.visual, 4)
    tokens = value_wise_forward(clip.visual, images)
    assert_close(tokens.class_token, clip.visual(images), **REFERENCE)
    assert_close(tokens.class_token, clip.encode_image(images), **REFERENCE)


def test_the_original_path_alone_is_that_of_open_clip(clip):
    images = images_for(clip.visual, 4)
    assert_close(class_token_forward(clip.visual, images), clip.visual(images), **REFERENCE)


def test_shapes_say_batch_patches_and_joint_width(clip):
    visual = clip.visual
    tokens = value_wise_forward(visual, images_for(visual, 2))
    assert isinstance(tokens, VisionTokens)
    assert tokens.class_token.shape == (2, visual.output_dim)
    assert tokens.patch_tokens.shape == (2, visual.grid_size[0] * visual.grid_size[1], visual.output_dim)


def test_patches_come_row_by_row(clip):
    visual = clip.visual
    side, (_, columns) = visual.patch_size[0], visual.grid_size
    image = images_for(visual, 1)
    touched = image.clone()
    touched[..., side : 2 * side, 2 * side : 3 * side] += 1.0
    moved = (embed_patches(visual, touched) - embed_patches(visual, image)).abs().sum(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 + columns + 2]


@pytest.mark.slow
def test_real_architecture_equals_the_reference():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        visual = open_clip.create_model("ViT-B-16-plus-240").visual.eval().requires_grad_(False)
    check_visual(visual, "ViT-B-16-plus-240")
    images = images_for(visual, 1)
    tokens = value_wise_forward(visual, images)
    image, local = reference_model.vision_tokens(visual, images)
    assert tokens.patch_tokens.shape == (1, 225, 640)
    assert_close(tokens.class_token, image.float(), **REFERENCE)
    assert_close(tokens.patch_tokens, local.float(), **REFERENCE)
    assert_close(tokens.class_token, visual(images), **REFERENCE)


@pytest.mark.parametrize("key", ["mlp.c_fc.weight", "mlp.c_proj.weight", "mlp.c_proj.bias", "ln_2.weight", "ln_2.bias"])
def test_last_mlp_changes_the_image_but_no_patch_token(visual, key):
    images = images_for(visual, 2)
    before = value_wise_forward(visual, images)
    after = value_wise_forward(changed(visual, f"transformer.resblocks.2.{key}"), images)
    assert torch.equal(before.patch_tokens, after.patch_tokens)
    assert (before.class_token - after.class_token).abs().max() > 1e-3


@pytest.mark.parametrize("key", ["attn.in_proj_weight", "attn.in_proj_bias"])
def test_last_queries_and_keys_change_no_patch_token(visual, key):
    images, width = images_for(visual, 2), visual.conv1.out_channels
    before = value_wise_forward(visual, images)
    after = value_wise_forward(changed(visual, f"transformer.resblocks.2.{key}", slice(2 * width)), images)
    assert_close(before.patch_tokens, after.patch_tokens, **FLOAT32)
    assert (before.class_token - after.class_token).abs().max() > 1e-4


@pytest.mark.parametrize("key", ["attn.in_proj_weight", "attn.out_proj.weight", "attn.out_proj.bias", "ln_1.weight"])
def test_values_and_projection_change_patch_tokens(visual, key):
    images, width = images_for(visual, 2), visual.conv1.out_channels
    part = slice(2 * width, None) if "in_proj" in key else slice(None)
    before = value_wise_forward(visual, images)
    after = value_wise_forward(changed(visual, f"transformer.resblocks.2.{key}", part), images)
    assert (before.patch_tokens - after.patch_tokens).abs().max() > 1e-3


@pytest.mark.parametrize("key", ["mlp.c_fc.weight", "attn.in_proj_weight"])
def test_values_come_from_the_original_path(visual, key):
    images, width = images_for(visual, 2), visual.conv1.out_channels
    part = slice(2 * width) if "in_proj" in key else slice(None)  # queries and keys
    before = value_wise_forward(visual, images)
    after = value_wise_forward(changed(visual, f"transformer.resblocks.0.{key}", part), images)
    assert (before.patch_tokens - after.patch_tokens).abs().max() > 1e-4


def test_class_token_takes_part_in_the_value_wise_path(visual):
    tower, images = shortened(visual), images_for(visual, 2)
    before = value_wise_forward(tower, images)
    after = value_wise_forward(changed(tower, "class_embedding"), images)
    assert (before.patch_tokens - after.patch_tokens).abs().max() > 1e-4


def test_every_block_takes_part(visual):
    images = images_for(visual, 2)
    whole = value_wise_forward(visual, images).patch_tokens
    for layer in range(3):
        tower = changed(visual, f"transformer.resblocks.{layer}.attn.out_proj.bias")
        assert (value_wise_forward(tower, images).patch_tokens - whole).abs().max() > 1e-3


def test_value_wise_path_starts_from_the_embedded_patches(visual):
    tower, images = shortened(visual, layers=0), images_for(visual, 2)
    start = tower.ln_post(embed_patches(tower, images)) @ tower.proj
    tokens = value_wise_forward(tower, images)
    assert_close(tokens.patch_tokens, start[:, 1:], **REFERENCE)
    assert_close(tokens.class_token, start[:, 0], **REFERENCE)


def test_both_residuals_agree_where_queries_and_keys_are_the_values(visual):
    block, width = deepcopy(visual.transformer.resblocks[0]), visual.conv1.out_channels
    for weight in (block.attn.in_proj_weight, block.attn.in_proj_bias):
        weight[:width] = weight[width : 2 * width] = weight[2 * width :]
    original, value_wise = attention_residuals(block, embed_patches(visual, images_for(visual, 2)))
    assert_close(original, value_wise, **REFERENCE)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_an_image_does_not_depend_on_its_neighbors_or_its_place(visual, seed, number, order):
    images, places = images_for(visual, number, seed), list(range(number))
    order.shuffle(places)
    together = value_wise_forward(visual, images[places])
    for position, place in enumerate(places):
        alone = value_wise_forward(visual, images[place : place + 1])
        assert_close(together.class_token[position], alone.class_token[0], **REFERENCE)
        assert_close(together.patch_tokens[position], alone.patch_tokens[0], **REFERENCE)


@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 4))
def test_the_same_batch_gives_the_same_bits(visual, seed, number):
    images = images_for(visual, number, seed)
    first, second = value_wise_forward(visual, images), value_wise_forward(visual, images.clone())
    assert torch.equal(first.class_token, second.class_token)
    assert torch.equal(first.patch_tokens, second.patch_tokens)
