"""The real architectures: which are supported, and value-wise attention on two of their blocks."""

from copy import deepcopy

import open_clip
import pytest
import torch
from open_clip import CLIP

from anovl_plugin.vision.backbone import BackboneError, build_visual, check_visual, is_supported_config
from anovl_plugin.vision.value_attention import value_wise_forward

ARCHITECTURES = (
    "ViT-B-16",
    "ViT-B-16-quickgelu",
    "ViT-B-16-plus-240",
    "ViT-B-32",
    "ViT-L-14",
    "ViT-L-14-quickgelu",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-H-14-quickgelu",
)


def short_visual(name: str) -> torch.nn.Module:
    """Return an architecture's image tower with two blocks instead of all."""
    config = deepcopy(open_clip.get_model_config(name))
    config["vision_cfg"]["layers"] = 2
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    return CLIP(**config).visual.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("name", [name for name in open_clip.list_models() if "ViT" in name])
def test_configuration_and_tower_agree_on_what_is_supported(name):
    config = open_clip.get_model_config(name)
    if "timm_model_name" in config["vision_cfg"] or "multimodal_cfg" in config:
        assert not is_supported_config(config)
        return
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
    with torch.device("meta"):
        visual = CLIP(config["embed_dim"], config["vision_cfg"] | {"layers": 1}, text).visual
    if is_supported_config(config):
        check_visual(visual, name)
    else:
        with pytest.raises(BackboneError):
            check_visual(visual, name)


@pytest.mark.parametrize(
    "change",
    [
        {"attentional_pool": True},
        {"pool_type": "avg"},
        {"layers": [1, 1, 1, 1]},
        {"timm_model_name": "resnet50"},
        {"qk_norm": True},
        {"scale_fc": True},
    ],
)
def test_settings_that_are_not_supported(change):
    config = open_clip.get_model_config("ViT-B-16")
    assert is_supported_config(config)
    config["vision_cfg"] |= change
    assert not is_supported_config(config)
    with pytest.raises(
        BackboneError, match=r"^backbone .* \(another kind of image tower\) is not a vision transformer"
    ):
        build_visual(config, (224, 224))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_original_path_is_that_of_open_clip(name):
    assert is_supported_config(open_clip.get_model_config(name))
    torch.manual_seed(0)
    visual = short_visual(name)
    check_visual(visual, name)
    images = torch.randn(1, 3, *visual.image_size)
    tokens = value_wise_forward(visual, images)
    torch.testing.assert_close(tokens.class_token, visual(images), atol=1e-5, rtol=1e-5)
    assert tokens.patch_tokens.shape == (1, visual.grid_size[0] * visual.grid_size[1], visual.output_dim)
