"""Random tensors that are the same in every run."""

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal noise of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images_for(model: object, number: int, seed: int = 0) -> Tensor:
    """Return normalized noise images, (number, 3, H, W), in the input size of a model or an image tower."""
    return noise(number, 3, *model.image_size, seed=seed)
