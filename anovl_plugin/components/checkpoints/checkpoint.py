"""Checkpoints with settings, text bank, and the CLIP's fingerprint or the CLIP itself."""

import warnings
from inspect import signature
from typing import Any, TypeVar, cast

from anomalib.data import AnomalibDataModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule

from anovl_plugin.components.checkpoints.settings import (
    DEFAULTS,
    REFERENCES,
    CheckpointError,
    changed_settings,
    model_arguments,
    read_saved_model,
    reconcile,
    references_of,
    without_tower,
)
from anovl_plugin.components.images.pre_processor import default_transform
from anovl_plugin.components.mixin import ModelMixin
from anovl_plugin.components.thresholds.post_processor import ZeroShotPostProcessor
from anovl_plugin.config import is_loading_checkpoint, loading_checkpoint
from anovl_plugin.hosts.lightning import attached_trainer
from anovl_plugin.scoring.references import bank_config
from anovl_plugin.torch_model import AnoVLModel

Model = TypeVar("Model", bound="CheckpointMixin")


class CheckpointMixin(ModelMixin):
    """Saves and restores a model with its settings, text bank and pre-processor.

    Attributes:
        model: The torch model.
        checkpoint_classes: The classes of the text banks that came with a checkpoint; none without one.
        keeps_references: Whether the reference banks came with a checkpoint whose settings still hold.
        has_default_pre_processor: Whether the pre-processor is the model's own.
    """

    model: AnoVLModel
    checkpoint_classes: tuple[str, ...] = ()
    keeps_references: bool = False
    has_default_pre_processor: bool
    _was_given_pre_processor: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, except for components."""
        return dict(self.hparams)

    @property
    def datamodule(self) -> AnomalibDataModule | None:
        """The data module of the run, if there is one."""
        trainer = attached_trainer(self)
        return None if trainer is None else getattr(trainer, "datamodule", None)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of the data module, if it has any."""
        several = getattr(self.datamodule, "categories", ())
        category = getattr(self.datamodule, "category", None)
        return tuple(several) or ((category,) if category else ())

    @classmethod
    def load_from_checkpoint(cls: type[Model], *args: Any, **kwargs: Any) -> Model:  # noqa: PYI019 - from Python 3.11
        """Return the model that wrote a checkpoint.

        Nothing that the checkpoint names is imported: its adaptation must be a class of this package, or one that the
        program has imported already.

        Args:
            *args: As for every anomalib model: the path of the checkpoint, and where to load it.
            **kwargs: Settings to change on purpose. If they change scores, thresholds start at 0.5 again.

        Raises:
            CheckpointError: If another model wrote the checkpoint.
            TypeError: If there is no such setting.
        """
        known = {*signature(cls).parameters, *signature(LightningModule.load_from_checkpoint).parameters}
        unknown = next((name for name in kwargs if name not in known), None)
        if unknown is not None:
            # Lightning would drop it.
            msg = f"{unknown} is not a setting of {cls.__name__}; use one of {', '.join(signature(cls).parameters)}"
            raise TypeError(msg)
        with loading_checkpoint():
            return cast("Model", super().load_from_checkpoint(*args, **kwargs))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the settings, for the state dict."""
        return {"settings": self.settings}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Keep the current settings; :meth:`on_load_checkpoint` has reconciled them with the checkpoint's."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the image tower out, unless it is to be saved.

        Raises:
            RuntimeError: If there is no text bank yet.
        """
        super().on_save_checkpoint(checkpoint)
        if not self.model.text_banks.is_built:
            msg = "there is no text bank to save yet; validate, test or call build_text_bank() first"
            raise RuntimeError(msg)
        checkpoint["anomalib_components_enabled"]["post_processor_class"] = type(self.post_processor).__name__
        checkpoint["anomalib_components_enabled"]["default_pre_processor"] = self.has_default_pre_processor
        if not self.settings["save_backbone"]:
            checkpoint["state_dict"] = without_tower(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Use the settings of a checkpoint, and load the CLIP it was made with.

        Raises:
            CheckpointError: If another model wrote the checkpoint, or a setting contradicts it.
            BackboneError: If the CLIP cannot be loaded.
        """
        saved = read_saved_model(checkpoint)
        if is_loading_checkpoint():
            # What differs from the checkpoint was changed on purpose.
            settings, changed = self.settings, changed_settings(self.settings, saved)
        else:
            settings, changed = reconcile(self.settings, DEFAULTS, saved, self.categories), []
        with loading_checkpoint():
            if settings != self.settings or not self.model.is_loaded:
                self.model = AnoVLModel(**model_arguments(settings)).to(self.device)
                self.save_hyperparameters(settings)
            self.model.prepare_for_checkpoint(saved.clip, has_weights=saved.has_tower)
        self.checkpoint_classes = tuple(saved.class_names)
        # Neither the image score nor how results are averaged touches the reference banks.
        kept = bank_config(references_of(settings)) == bank_config(references_of(saved.settings))
        self.keeps_references = set(changed) <= {"image_score", *(("references",) if kept else ())}
        if not self.keeps_references:
            self._restart_references(checkpoint)
        self._restore_components(checkpoint, changed)
        if changed:
            self._restart_thresholds(checkpoint, changed)

    def _restore_components(self, checkpoint: dict[str, Any], changed: list[str]) -> None:
        components = [self.pre_processor, self.post_processor]
        enabled = checkpoint.get("anomalib_components_enabled", {})
        wanted, was_default = enabled.pop("post_processor_class", None), enabled.pop("default_pre_processor", False)
        current = type(self.post_processor).__name__
        if wanted not in {None, "NoneType", current}:
            msg = f"post_processor is a {current}, but the checkpoint was made with a {wanted}; pass one of that class"
            raise ValueError(msg)
        if self._was_given_pre_processor:
            self._check_pre_processor(checkpoint)
        elif self.has_default_pre_processor:
            self.has_default_pre_processor = was_default
            if was_default and {"image_size", "tiles_per_side"} & set(changed):
                checkpoint.pop("anomalib_pre_processor_config", None)
                self.set_default_transform()
        super().on_load_checkpoint(checkpoint)
        # anomalib drops a component that the checkpoint's model did not have, but not its callback.
        callbacks = getattr(attached_trainer(self), "callbacks", [])
        for component in components:
            kept = component in (self.pre_processor, self.post_processor)
            if not kept and component in callbacks:
                callbacks.remove(component)
        self._update_dataset_resizing()

    def set_default_transform(self) -> None:
        """Complete the model's own pre-processor, now that the CLIP's size and normalization are known."""
        pre_processor = self.pre_processor
        if self.has_default_pre_processor and pre_processor is not None and pre_processor.transform is None:
            pre_processor.set_transform(default_transform(self.model))
            self._update_dataset_resizing()

    def _update_dataset_resizing(self) -> None:
        """Let the datasets resize as the pre-processor does now; anomalib read its size before it was complete."""
        if self.datamodule is not None:
            self.datamodule.setup(self.trainer.state.fn)

    def _check_pre_processor(self, checkpoint: dict[str, Any]) -> None:
        key = "anomalib_pre_processor_config"
        own = self.pre_processor.checkpoint_config() if isinstance(self.pre_processor, PreProcessor) else None
        if checkpoint.get(key) == own:
            return
        if is_loading_checkpoint():
            # Changed on purpose; anomalib would replace it.
            checkpoint.pop(key, None)
            return
        msg = (
            "pre_processor is not the checkpoint's; omit it, or change it on purpose with "
            "AnoVL.load_from_checkpoint(path, pre_processor=...)"
        )
        raise CheckpointError(msg)

    def _restart_references(self, checkpoint: dict[str, Any]) -> None:
        others = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith(REFERENCES)}
        empty = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        empty = {name: value for name, value in empty.items() if name.startswith(REFERENCES)}
        checkpoint["state_dict"] = others | empty

    def _restart_thresholds(self, checkpoint: dict[str, Any], changed: list[str]) -> None:
        if not isinstance(self.post_processor, ZeroShotPostProcessor):
            return
        names = ", ".join(changed)
        msg = f"{names} of the checkpoint changed on purpose, so its thresholds do not hold; they start at 0.5 again"
        warnings.warn(msg, UserWarning, stacklevel=2)
        fresh = {f"post_processor.{name}": value for name, value in self.post_processor.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **fresh}
