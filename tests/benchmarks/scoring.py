"""Adaptation, reference images and prompts."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anovl_plugin import PatchMemory, PatchSubspace, TextAdapter, TextBank, value_wise_forward
from anovl_plugin.scoring.adaptation import adapt_tokens
from anovl_plugin.text.prompts import prompt_ensemble
from anovl_plugin.text.text_bank import TextTower
from anovl_plugin.vision.backbone import load_backbone
from tests.benchmarks.measuring import in_turns
from tests.benchmarks.setting import CLASS_NAME, Setting
from tests.benchmarks.table import Ratio, ratio

# One prompt of so many is encoded, of each state and length alike.
PROMPT_STEP = 4


def adapt_naively(tokens: Tensor, bank: TextBank) -> Tensor:
    """Adapt image by image, as one would write it from the paper."""
    adapted = []
    for clean in tokens:
        layer = nn.Linear(clean.shape[-1], len(bank.prompt_embeddings), device=clean.device)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)

        def adapter(x: Tensor, layer: nn.Linear = layer) -> Tensor:
            return 0.5 * x + 0.5 * torch.tanh(layer(F.normalize(x, dim=-1))) @ bank.prompt_embeddings

        def probabilities(x: Tensor, adapter: Callable[[Tensor], Tensor] = adapter) -> Tensor:
            return (F.normalize(adapter(x), dim=-1) @ bank.state_embeddings.T).softmax(-1)

        for _ in range(5):
            clean_p, noisy_p = probabilities(clean), probabilities(clean + 0.055 * torch.randn_like(clean))
            entropy = -(clean_p * clean_p.log()).sum(-1).mean()
            loss = entropy - 0.5 * (noisy_p[:, 1].log().mean() + clean_p[:, 0].log().mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        adapted.append(adapter(clean).detach())
    return torch.stack(adapted)


def bench_adaptation(setting: Setting) -> Iterator[Ratio]:
    """Compare the text adapter with plain image encoding, and with a loop over images."""
    on_gpu = setting.device == "cuda"
    model, images = setting.model(), setting.images((4 if on_gpu else 2) * setting.batch)
    adapter, count, bank = TextAdapter(), len(images), model.text_bank
    with torch.no_grad():
        tokens = value_wise_forward(model.image_tower.visual, images).patch_tokens.float()

    @torch.no_grad()
    def encode() -> Tensor:
        return model.image_tower.visual(images)

    times = in_turns(lambda: adapt_tokens(adapter, tokens, bank), encode, setting.few(3))
    prompts = len(bank.prompt_embeddings)
    yield ratio(f"text adapter, 5 steps, {prompts} prompts ÷ plain image encoding", times, count, "≤ 0.35")
    times = in_turns(lambda: adapt_naively(tokens, bank), lambda: adapt_tokens(adapter, tokens, bank), setting.few(2))
    yield ratio(f"adapting image by image ÷ ours, batch {count}", times, count, "≥ 10" if on_gpu else "≥ 1.2")


@torch.inference_mode()
def bench_references(setting: Setting) -> Iterator[Ratio]:
    """Compare scoring with 4 reference images with scoring without, and measure their banks."""
    images, shots = setting.images(setting.batch), [*setting.images(4).float()]
    zero_shot = setting.model()
    for part, goal in ((PatchSubspace(), "≤ 1.10"), (PatchMemory(), "≤ 1.25")):
        model = setting.model(references=part)
        model.build_reference_bank(shots)
        times = in_turns(lambda model=model: model(images), lambda: zero_shot(images), setting.few(2))
        size = sum(bank.num_bytes for bank in model.reference_banks) / 1e6
        yield ratio(f"{type(part).__name__}, 4 images, {size:.1f} MB ÷ zero-shot", times, len(images), goal)


@torch.inference_mode()
def bench_prompts(setting: Setting) -> Iterator[Ratio]:
    """Compare encoding prompts in a truncated context with encoding them in the full one."""
    loaded = load_backbone(setting.backbone, setting.weights)
    tower = TextTower(loaded.clip.to(setting.device), loaded.tokenizer)
    prompts = [sentence for state in prompt_ensemble(CLASS_NAME) for sentence in state][::PROMPT_STEP]
    times = in_turns(
        lambda: tower.encode(prompts), lambda: tower.encode(prompts, truncate_context=False), setting.few(4)
    )
    what = f"{len(prompts)} prompts, truncated context ÷ full context"
    yield ratio(what, times, len(prompts), "≤ 0.25", "a prompt")
