"""Value-wise attention on the real architectures, of which two blocks are enough to see that the paths are right."""

from copy import deepcopy

import open_clip
import pytest
import torch
from open_clip.model import CLIP

from anovl_plugin.vision.backbone import check_visual, is_supported_config
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
    """Make an architecture's image tower, with two blocks in the place of all."""
    config = deepcopy(open_clip.get_model_config(name))
    config["vision_cfg"]["layers"] = 2
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 1}
    return CLIP(**config).visual.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ordinary_path_is_that_of_open_clip(name):
    assert is_supported_config(open_clip.get_model_config(name))
    torch.manual_seed(0)
    visual = short_visual(name)
    check_visual(visual, name)
    images = torch.randn(1, 3, *visual.image_size)
    tokens = value_wise_forward(visual, images)
    torch.testing.assert_close(tokens.class_token, visual(images), atol=1e-5, rtol=1e-5)
    assert tokens.patch_tokens.shape == (1, visual.grid_size[0] * visual.grid_size[1], visual.output_dim)
