"""The machine, in words."""

import os
import re
from datetime import datetime, timezone
from pathlib import Path

import torch

# What speeds up half precision and integers on x86 and ARM.
UNITS = ("avx512_bf16", "amx_bf16", "amx_int8", "avx512_vnni", "avx_vnni", "bf16", "i8mm")


def describe_machine(minutes: float) -> str:
    """Return processor, card, torch and date in one paragraph.

    Args:
        minutes: how long the run took.
    """
    today = datetime.now(tz=timezone.utc).date().isoformat()
    name, flags = read_processor(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    units = ", ".join(unit for unit in UNITS if unit in flags) or "no units for bf16 or int8"
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    return (
        f"Measured on {today} in {minutes:.0f} minutes: {name} ({units}), {cores} cores, "
        f"{torch.get_num_threads()} threads, {card}, torch {torch.__version__}."
    )


def read_processor(text: str) -> tuple[str, set[str]]:
    """Return the processor's name and its flags from Linux's description of it."""
    found = dict(re.findall(r"^([^\t:\n]+)\t*: (.*)$", text, re.MULTILINE))
    name = found.get("model name") or "unknown processor"
    numbers = [f"{key} {found[full]}" for key, full in (("family", "cpu family"), ("model", "model")) if full in found]
    flags = set((found.get("flags") or found.get("Features") or "").split())
    return ", ".join([name, *numbers]), flags
