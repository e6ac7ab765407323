"""AnoVL for anomalib: zero-shot anomaly localization with value-wise attention and state prompts.

Importing this package registers the model with anomalib and is cheap: everything else is imported on first use.
"""

from anovl_plugin.registration import install

__version__ = "0.1.0"
_HOMES = {
    "Adaptation": "scoring.adaptation",
    "AnoVL": "lightning_model",
    "AnoVLModel": "torch_model",
    "AntialiasedPreProcessor": "components.images.pre_processor",
    "CombinedScore": "scoring.image_score",
    "GlobalScore": "scoring.image_score",
    "ImageScore": "scoring.image_score",
    "LinearAdapter": "scoring.adaptation",
    "MapScore": "scoring.image_score",
    "MultiCategory": "components.classes.multi_category",
    "PatchMemory": "scoring.patch_memory",
    "PatchSubspace": "scoring.patch_subspace",
    "Prompts": "text.prompts",
    "References": "scoring.references",
    "ResultVisualizer": "components.pictures.visualizer",
    "TextAdapter": "scoring.adaptation",
    "TextBank": "text.text_bank",
    "TextBanks": "text.text_banks",
    "TextTower": "text.text_tower",
    "ZeroShotPostProcessor": "components.thresholds.post_processor",
    "check_adaptation": "scoring.check_adaptation",
    "describe": "components.results.explanation",
    "load_backbone": "vision.backbone",
    "prompt_ensemble": "text.prompts",
    "value_wise_forward": "vision.value_attention",
}
__all__ = [
    "Adaptation",
    "AnoVL",
    "AnoVLModel",
    "AntialiasedPreProcessor",
    "CombinedScore",
    "GlobalScore",
    "ImageScore",
    "LinearAdapter",
    "MapScore",
    "MultiCategory",
    "PatchMemory",
    "PatchSubspace",
    "Prompts",
    "References",
    "ResultVisualizer",
    "TextAdapter",
    "TextBank",
    "TextBanks",
    "TextTower",
    "ZeroShotPostProcessor",
    "check_adaptation",
    "describe",
    "load_backbone",
    "prompt_ensemble",
    "value_wise_forward",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})


install()
