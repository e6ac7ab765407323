"""From prompts to the text bank: what "normal" and "abnormal" look like in CLIP's joint space.

Shapes: K prompts of both states together, L context length, C joint embedding width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anovl_plugin.text.prompts import PromptEnsemble
from anovl_plugin.text.text_tower import TextTower


def state_embedding(embeddings: Tensor) -> Tensor:
    """Average the prompts of one state: t_s = normalise(mean of the unnormalised embeddings).

    Args:
        embeddings: prompt embeddings of shape (..., K, C), not normalised.

    Returns:
        Unit vectors of shape (..., C).
    """
    return F.normalize(embeddings.mean(-2), dim=-1)


class TextBank(nn.Module):
    """What a class's prompts say, kept in float32 whatever precision the model is moved to.

    The two states differ by some 1e-3 in cosine, which half precision cannot hold.

    Args:
        width: joint embedding width C.
        num_prompts: prompts of both states together, K.

    Attributes:
        states: unit vectors of "normal" and "abnormal", shape (2, C).
        prompts: each prompt's own unit vector, the normal ones first, shape (K, C).
    """

    states: Tensor
    prompts: Tensor

    def __init__(self, width: int, num_prompts: int) -> None:
        super().__init__()
        self.register_buffer("states", torch.zeros(2, width))
        self.register_buffer("prompts", torch.zeros(num_prompts, width))

    def build(self, tower: TextTower, ensemble: PromptEnsemble) -> None:
        """Fill the bank from prompts, on the device of the text tower.

        Args:
            tower: the text side of the CLIP.
            ensemble: the prompts of the class.
        """
        # The engine asks for a bank in inference mode, whose tensors no checkpoint could be loaded into afterwards.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(tower.device.type, enabled=False):
            normal, abnormal = tower.encode(ensemble.normal), tower.encode(ensemble.abnormal)
            self.states = torch.stack([state_embedding(normal), state_embedding(abnormal)])
            self.prompts = F.normalize(torch.cat([normal, abnormal]), dim=-1)

    def copy(self) -> "TextBank":
        """Copy the bank to tensors of its own, which are no inference tensors if made outside of inference mode."""
        bank = TextBank(self.states.shape[1], len(self.prompts))
        bank.states, bank.prompts = self.states.clone(), self.prompts.clone()
        return bank

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextBank":  # noqa: ARG002 - torch's signature
        # Follow a move to another device, but not a cast to another precision.
        for name, buffer in self._buffers.items():
            self._buffers[name] = buffer.to(fn(buffer).device, torch.float32)
        return self
