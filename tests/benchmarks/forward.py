"""The forward pass against plain image encoding, WinClip and Patchcore."""

from collections.abc import Iterator

import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

from anovl_plugin import GlobalScore
from tests.benchmarks.measuring import Times, in_turns
from tests.benchmarks.setting import Setting, make_winclip
from tests.benchmarks.table import Ratio, ratio

# MVTec AD's bottles: 209 images of 32 × 32 patches, of which Patchcore keeps a tenth.
PATCHCORE_BANK = 209 * 32 * 32 // 10


@torch.inference_mode()
def bench_map(setting: Setting) -> Iterator[Ratio]:
    """Compare the training-free map with plain image encoding."""
    model, images = setting.model(), setting.images(setting.batch)
    times = in_turns(lambda: model(images), lambda: model.image_tower.visual(images), setting.rounds)
    yield ratio("training-free map ÷ plain image encoding", times, len(images), "≤ 1.15")


@torch.inference_mode()
def bench_winclip(setting: Setting) -> Iterator[Ratio]:
    """Compare WinClip with the training-free map."""
    winclip = make_winclip().to(setting.device, setting.dtype)
    model, images = setting.model(), setting.images(setting.few_images)
    times = in_turns(lambda: winclip(images), lambda: model(images), setting.few(4), warm_up=False)
    yield ratio("WinClip ÷ training-free map", times, len(images), "≥ 10")


@torch.inference_mode()
def bench_views(setting: Setting) -> Iterator[Ratio]:
    """Compare the image score over the paper's views, and the map with it, with plain image encoding."""
    model, images = setting.model(image_score=GlobalScore("paper")), setting.images(setting.few_images)
    count = len(model.image_score.image_views)
    # As many plain passes as views, so that both sides last as long and average over the machine's moods alike.
    times = in_turns(
        lambda: model(images),
        lambda: [model.image_tower.visual(images) for _ in range(count)],
        setting.few(4),
        warm_up=setting.device == "cuda",
    )
    plain = Times(times.first, times.second / count, times.spread * count)
    yield ratio(f"{count} views and map ÷ plain image encoding", plain, len(images), "≤ 22.5")


@torch.inference_mode()
def bench_patchcore(setting: Setting) -> Iterator[Ratio]:
    """Compare Patchcore, with the memory bank of a real category's size, with the training-free map."""
    patchcore = PatchcoreModel(layers=("layer2", "layer3"), backbone="wide_resnet50_2", pre_trained=False).eval()
    patchcore.memory_bank = torch.rand(PATCHCORE_BANK, 512 + 1024)
    patchcore = patchcore.to(setting.device, setting.dtype)
    model, images, theirs = setting.model(), setting.images(setting.batch), setting.images(setting.batch, 256)
    times = in_turns(lambda: patchcore(theirs), lambda: model(images), setting.few(3))
    what = f"Patchcore, wide_resnet50_2, {PATCHCORE_BANK:,} patches kept ÷ training-free map"
    yield ratio(what, times, len(images))
