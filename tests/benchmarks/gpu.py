"""What a GPU changes: precision, torch.compile, batches, and its memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from anovl_plugin import GlobalScore, TextAdapter
from tests.benchmarks.measuring import in_turns, most_megabytes, seconds_of
from tests.benchmarks.setting import Setting
from tests.benchmarks.table import Ratio, ratio

BATCHES = (1, 8, 32, 128)
SMALL_BATCHES = (1, 2)

Bench = Callable[[Setting], Iterator[Ratio]]


@torch.inference_mode()
def bench_half_precision(setting: Setting) -> Iterator[Ratio]:
    """Compare half precision with float32, without and with the paper's views."""
    images = setting.images(setting.batch)
    kinds = {"single": "map"} if setting.is_small else {"single": "map", "paper": "22 views and map"}
    for views, what in kinds.items():
        full = setting.model(image_score=GlobalScore(views))
        for dtype in (torch.bfloat16, torch.float16):
            half = setting._replace(dtype=dtype).model(image_score=GlobalScore(views))
            inputs = images.to(dtype)
            times = in_turns(
                lambda half=half, inputs=inputs: half(inputs), lambda full=full: full(images), setting.few(2)
            )
            yield ratio(f"{what} in {str(dtype).removeprefix('torch.')} ÷ in float32", times, len(images))


@torch.inference_mode()
def bench_compile(setting: Setting) -> Iterator[Ratio]:
    """Compare the compiled model with the eager one; what compiling takes is in the note."""
    # Inductor takes a minute; whether the model can be compiled at all does not depend on it.
    backend = "eager" if setting.is_small else "inductor"
    eager, compiled, images = setting.model(), setting.model(), setting.images(setting.batch)
    compiled.compile(backend=backend)
    once = seconds_of(lambda: compiled(images))
    times = in_turns(lambda: compiled(images), lambda: eager(images), setting.rounds)
    row = ratio(f"torch.compile, {backend} ÷ eager", times, len(images))
    yield replace(row, note=f"{row.note}; {once:.0f} s once to compile")


@torch.inference_mode()
def bench_throughput(setting: Setting) -> Iterator[Ratio]:
    """Measure images a second and peak memory by batch size."""
    model = setting.model()
    for batch in SMALL_BATCHES if setting.is_small else BATCHES:
        images = setting.images(batch)
        model(images)
        seconds = min(seconds_of(lambda images=images: model(images)) for _ in range(setting.few(2)))
        note = f"{peak_megabytes(setting, lambda images=images: model(images)):,.0f} MB"
        dtype = str(setting.dtype).removeprefix("torch.")
        yield Ratio(f"batch {batch}, {dtype}", batch / seconds, note=note, unit="images a second")


@torch.inference_mode()
def bench_peak_memory(setting: Setting) -> Iterator[Ratio]:
    """Measure the peak memory of scoring a batch, with views and with the text adapter."""
    options = {
        "map": {},
        "22 views": {"image_score": GlobalScore("paper")},
        "text adapter": {"adaptation": TextAdapter()},
    }
    for what, chosen in options.items():
        model, images = setting.model(**chosen), setting.images(setting.batch)
        peak = peak_megabytes(setting, lambda model=model, images=images: model(images))
        yield Ratio(f"peak memory, {what}, batch {len(images)}", peak, unit="MB")


def peak_megabytes(setting: Setting, call: Callable[[], object]) -> float:
    """Run something and return the peak memory meanwhile: of tensors on a GPU, else of the process."""
    if setting.device != "cuda":
        return most_megabytes(call)
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def in_half(bench: Bench) -> Bench:
    """Return a part that measures in bfloat16."""
    return lambda setting: bench(setting._replace(dtype=torch.bfloat16))
