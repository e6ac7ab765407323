"""The settings of a model as plain data, and their reconciliation with those of a checkpoint.

A checkpoint is authoritative: what the user leaves at its default comes from the checkpoint, and what the user sets
must agree with it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from anovl_plugin.config import shown, to_config
from anovl_plugin.scoring.image_score import GlobalScore
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED

# Prefix of the image tower's weights in a state dict of the Lightning module.
TOWER = "model.image_tower.visual."
SETTINGS = "_extra_state"
CLIP = "model.image_tower._extra_state"
BANK = "model.text_bank._extra_state"
# Settings that change scores: thresholds belong to the values they were set with.
SCORING = (
    "backbone",
    "pretrained",
    "class_name",
    "domain",
    "prompts",
    "image_size",
    "image_score",
    "tiles_per_side",
    "adaptation",
)


# Default of each setting.
DEFAULTS: dict[str, Any] = {
    "backbone": DEFAULT_BACKBONE,
    "class_name": None,
    "domain": "auto",
    "prompts": None,
    "pretrained": DEFAULT_PRETRAINED,
    "image_size": None,
    "image_score": to_config(GlobalScore()),
    "tiles_per_side": None,
    "adaptation": None,
    "save_backbone": False,
}


class CheckpointError(ValueError):
    """A checkpoint cannot be used with this model, or with these settings."""


class SavedModel(NamedTuple):
    """What a checkpoint says about the model that wrote it.

    Attributes:
        settings: The constructor's arguments.
        clip: Source, architecture, temperature and fingerprint of the CLIP.
        bank: Class and domain of the text bank.
        has_tower: Whether the checkpoint holds the image tower.
    """

    settings: dict[str, Any]
    clip: dict[str, Any]
    bank: dict[str, Any]
    has_tower: bool


def settings_of(model: AnoVLModel, class_name: str | None, domain: str, save_backbone: bool) -> dict[str, Any]:
    """Return the arguments of a model's constructor as plain data, except for components."""
    backbone, pretrained = model.source
    return {
        "backbone": backbone,
        "class_name": class_name,
        "domain": domain,
        "prompts": model.prompts.to_dict(),
        "pretrained": pretrained,
        "image_size": model.image_tower.requested_image_size,
        "image_score": to_config(model.image_score),
        "tiles_per_side": model.tiles_per_side,
        "adaptation": to_config(model.adaptation),
        "save_backbone": save_backbone,
    }


def read_saved_model(checkpoint: Mapping[str, Any]) -> SavedModel:
    """Return what a checkpoint says about the model that wrote it.

    Raises:
        CheckpointError: If another model, or an incompatible version of this one, wrote the checkpoint.
    """
    state = checkpoint.get("state_dict", {})
    if not {SETTINGS, CLIP, BANK} <= set(state):
        msg = (
            "the checkpoint was not written by this version of AnoVL: it lacks the settings or the text bank; "
            "set ckpt_path to a checkpoint of AnoVL, or write it again with `anomalib test`"
        )
        raise CheckpointError(msg)
    has_tower = any(key.startswith(TOWER) for key in state)
    return SavedModel(state[SETTINGS]["settings"], state[CLIP], state[BANK], has_tower)


def without_tower(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the weights of the image tower."""
    return {name: value for name, value in state_dict.items() if not name.startswith(TOWER)}


def reconcile(
    given: Mapping[str, Any], defaults: Mapping[str, Any], saved: SavedModel, category: str | None = None
) -> dict[str, Any]:
    """Return the settings to use with a checkpoint.

    Args:
        given: The settings of the model that loads the checkpoint.
        defaults: Default of each setting.
        saved: What the checkpoint says.
        category: Category of the data module, if there is one.

    Returns:
        The checkpoint's value of each setting, or the user's if it only says where the same weights are, or what to
        save.

    Raises:
        CheckpointError: If the user sets something that the checkpoint contradicts.
    """
    # The values that were in effect for settings left open.
    in_effect = saved.settings | {
        "class_name": saved.bank["class_name"],
        "domain": saved.bank["domain"],
        "image_size": tuple(saved.settings["image_size"] or saved.clip["spec"]["image_size"]),
    }
    merged = dict(saved.settings)
    is_set = {name: given[name] != defaults[name] for name in given}
    for name in given:
        value = given[name] if name != "image_size" else _as_pair(given[name])
        if not is_set[name] or value == in_effect[name] or given[name] == saved.settings[name]:
            continue
        # Weights may have been moved; their fingerprint tells whether they are the same.
        if name == "save_backbone" or (name in {"backbone", "pretrained"} and not saved.has_tower):
            merged[name] = given[name]
        else:
            raise _contradiction(name, given[name], in_effect[name])
    if merged["backbone"] != saved.settings["backbone"]:
        merged["pretrained"] = given["pretrained"]
    if category and saved.settings["class_name"] is None and category != saved.bank["class_name"]:
        msg = (
            f"the data module's category is {category!r}, but the checkpoint was made with "
            f"{in_effect['class_name']!r}, and its thresholds belong to that; use a checkpoint of {category!r}, or run "
            "without ckpt_path"
        )
        raise CheckpointError(msg)
    return merged


def changed_settings(settings: Mapping[str, Any], saved: SavedModel) -> list[str]:
    """Return the names of the settings that change scores and differ from the checkpoint's."""
    return [name for name in SCORING if settings[name] != saved.settings[name]]


def _as_pair(image_size: Any) -> tuple[int, int] | None:
    return None if image_size is None else tuple(image_size)


def _contradiction(name: str, value: Any, saved: Any) -> CheckpointError:
    return CheckpointError(
        f"{name} is {_brief(value)}, but the checkpoint was made with {_brief(saved)}; omit {name}, or change it "
        f"on purpose with AnoVL.load_from_checkpoint(path, {name}=...), after which thresholds start at 0.5"
    )


def _brief(value: Any) -> str:
    """Return a setting as the user writes it; pluggable parts by the name of their class."""
    if isinstance(value, Mapping) and "class_path" in value:
        settings = ", ".join(f"{name}={setting!r}" for name, setting in value.get("init_args", {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({settings})"
    return shown(value)
