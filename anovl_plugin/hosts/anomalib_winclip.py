"""What the package uses of WinClip beyond its public API; not in ``anomalib.py``, because it imports all models."""

import torch
from anomalib.models.image.winclip.torch_model import TEMPERATURE, WinClipModel
from torch import nn

__all__ = ["WinClipModelWithClip"]


class WinClipModelWithClip(WinClipModel):
    """anomalib's WinCLIP around a CLIP that is already loaded.

    anomalib's constructor is not called, because it downloads the CLIP that it hard-codes. This one sets up everything
    else in the same way.

    Args:
        clip: An open_clip model with both towers; its image tower must be open_clip's native vision transformer.
        scales: Sides of the sliding windows, in patches.
    """

    def __init__(self, clip: nn.Module, scales: tuple[int, ...]) -> None:
        super(WinClipModel, self).__init__()
        self.temperature = TEMPERATURE
        self.class_name = None
        self.reference_images = None
        self.scales = scales
        self.apply_transform = False
        self.k_shot = 0
        self.clip = clip
        self.clip.visual.output_tokens = True
        self.grid_size = self.clip.visual.grid_size
        self.register_buffer_list("masks", self._generate_masks(), persistent=False)
        self.register_buffer("_text_embeddings", torch.empty(0))
        self.register_buffer_list("_visual_embeddings", [torch.empty(0) for _ in scales])
        self.register_buffer("_patch_embeddings", torch.empty(0))
