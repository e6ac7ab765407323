"""The settings of a model as plain data, and their reconciliation with those of a checkpoint.

A checkpoint is authoritative: what the user leaves at its default comes from the checkpoint, and what the user sets
must agree with it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from anovl_plugin.components.classes.image_classes import FROM_FOLDER
from anovl_plugin.config import expanded, shown, to_config
from anovl_plugin.scoring.image_score import GlobalScore
from anovl_plugin.scoring.patch_memory import PatchMemory
from anovl_plugin.torch_model import AnoVLModel
from anovl_plugin.vision.backbone import DEFAULT_BACKBONE, DEFAULT_PRETRAINED
from anovl_plugin.vision.source import FOLDER

# Prefix of the image tower's weights in a state dict of the Lightning module.
TOWER = "model.image_tower.visual."
SETTINGS = "_extra_state"
CLIP = "model.image_tower._extra_state"
# Prefixes of the text banks and of the reference banks.
BANKS = "model.text_banks."
REFERENCES = "model.reference_banks."
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
    "references",
    "k_shot",
    "few_shot_source",
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
    "references": None,
    "k_shot": 0,
    "few_shot_source": None,
    "cache": True,
    "save_backbone": False,
}
# Settings that change no score: the user's hold, whatever the checkpoint says.
_HOUSEKEEPING = {"save_backbone", "cache"}
# Settings that may name a file or a folder.
_PATHS = {"backbone", "pretrained", "few_shot_source"}


class CheckpointError(ValueError):
    """A checkpoint cannot be used with this model, or with these settings."""


class SavedModel(NamedTuple):
    """What a checkpoint says about the model that wrote it.

    Attributes:
        settings: The constructor's arguments.
        clip: Source, architecture, temperature and fingerprint of the CLIP.
        banks: Class and domain of each text bank.
        has_tower: Whether the checkpoint holds the image tower.
    """

    settings: dict[str, Any]
    clip: dict[str, Any]
    banks: list[dict[str, Any]]
    has_tower: bool

    @property
    def class_names(self) -> list[str]:
        """The classes of the text banks."""
        return [bank["class_name"] for bank in self.banks]


def settings_of(
    model: AnoVLModel,
    class_name: str | dict[str, str] | None,
    domain: str,
    save_backbone: bool,
    few_shot: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of a model's constructor as plain data, except for components.

    Args:
        model: The torch model.
        class_name: Likewise, of the anomalib model.
        domain: Likewise.
        save_backbone: Likewise.
        few_shot: Its ``references``, ``k_shot`` and ``few_shot_source``.
    """
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
        **few_shot,
        "cache": model.cache,
        "save_backbone": save_backbone,
    }


def model_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the torch model that has these settings, without a class."""
    others = {"class_name", "save_backbone", "k_shot", "few_shot_source"}
    arguments = {name: value for name, value in settings.items() if name not in others}
    return arguments | {"references": references_of(settings)}


def references_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the ``references`` of these settings; by default a :class:`PatchMemory` if there are reference images."""
    has_images = bool(settings["k_shot"] or settings["few_shot_source"])
    return settings["references"] or (to_config(PatchMemory()) if has_images else None)


def read_saved_model(checkpoint: Mapping[str, Any]) -> SavedModel:
    """Return what a checkpoint says about the model that wrote it.

    Raises:
        CheckpointError: If another model, or an incompatible version of this one, wrote the checkpoint.
    """
    state = checkpoint.get("state_dict", {})
    banks = [value for key, value in state.items() if key.startswith(BANKS) and key.endswith("._extra_state")]
    if not (banks and {SETTINGS, CLIP} <= set(state)):
        msg = (
            "the checkpoint was not written by this version of AnoVL: it lacks the settings or the text bank; "
            "set ckpt_path to a checkpoint of AnoVL, or write it again with `anomalib test`"
        )
        raise CheckpointError(msg)
    has_tower = any(key.startswith(TOWER) for key in state)
    # Settings that the version which wrote the checkpoint did not have are at their defaults.
    return SavedModel(DEFAULTS | state[SETTINGS]["settings"], state[CLIP], banks, has_tower)


def without_tower(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the weights of the image tower."""
    return {name: value for name, value in state_dict.items() if not name.startswith(TOWER)}


def reconcile(
    given: Mapping[str, Any], defaults: Mapping[str, Any], saved: SavedModel, categories: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the settings to use with a checkpoint.

    Args:
        given: The settings of the model that loads the checkpoint.
        defaults: Default of each setting.
        saved: What the checkpoint says.
        categories: Categories of the data module, if it has any.

    Returns:
        The checkpoint's value of each setting, or the user's if it only says where the same weights are, or what to
        save.

    Raises:
        CheckpointError: If the user sets something that the checkpoint contradicts.
    """
    # The values that were in effect for settings left open.
    in_effect = saved.settings | {
        "class_name": saved.class_names[0] if len(saved.banks) == 1 else saved.class_names,
        "domain": saved.banks[0]["domain"] if len({bank["domain"] for bank in saved.banks}) == 1 else "auto",
        "image_size": tuple(saved.settings["image_size"] or saved.clip["spec"]["image_size"]),
        "references": references_of(saved.settings),
    }
    merged = dict(saved.settings)
    is_set = {name: given[name] != defaults[name] for name in given}
    for name in given:
        value = given[name] if name != "image_size" else _as_pair(given[name])
        if not is_set[name] or value == in_effect[name] or _is_same(name, given[name], saved.settings[name]):
            continue
        # Weights may have been moved; their fingerprint tells whether they are the same.
        if name in _HOUSEKEEPING or (name in {"backbone", "pretrained"} and not saved.has_tower):
            merged[name] = given[name]
        elif name == "class_name" and len(saved.banks) > 1 and is_among(given[name], saved.class_names):
            # The checkpoint knows them all; this says which image shows which.
            merged[name] = given[name]
        elif name == "class_name" and len(saved.banks) > 1:
            known = ", ".join(map(shown, saved.class_names))
            msg = (
                f"class_name is {_brief(given[name])}, but the checkpoint holds {known}; "
                "set it to one of them, to a mapping from folder names to them, or to 'from_folder'"
            )
            raise CheckpointError(msg)
        else:
            raise _contradiction(name, given[name], in_effect[name])
    if merged["backbone"] != saved.settings["backbone"]:
        merged["pretrained"] = given["pretrained"]
    unknown = next((category for category in categories if category not in saved.class_names), None)
    if unknown is not None and saved.settings["class_name"] is None:
        msg = (
            f"the data module's category is {unknown!r}, but the checkpoint was made with "
            f"{' and '.join(map(repr, saved.class_names))}, and its thresholds belong to that; use a checkpoint of "
            f"{unknown!r}, or run without ckpt_path"
        )
        raise CheckpointError(msg)
    return merged


def changed_settings(settings: Mapping[str, Any], saved: SavedModel) -> list[str]:
    """Return the names of the settings that change scores and differ from the checkpoint's."""
    changed = [name for name in SCORING if not _is_same(name, settings[name], saved.settings[name])]
    if len(saved.banks) > 1 and is_among(settings["class_name"], saved.class_names):
        return [name for name in changed if name != "class_name"]
    return changed


def is_among(class_name: str | Mapping[str, str] | None, class_names: Sequence[str]) -> bool:
    """Return whether a ``class_name`` setting asks for these classes only; folders are known once there are images."""
    if isinstance(class_name, Mapping):
        return set(class_name.values()) <= set(class_names)
    return class_name in (None, FROM_FOLDER, *class_names)


def _is_same(name: str, value: Any, saved: Any) -> bool:
    """Return whether a setting is the checkpoint's; a file or folder may be written in several ways."""
    return bool(value == saved) or (name in _PATHS and None not in (value, saved) and _place(value) == _place(saved))


def _place(value: str) -> tuple[bool, Path]:
    return value.startswith(FOLDER), Path(expanded(value.removeprefix(FOLDER))).resolve()


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
