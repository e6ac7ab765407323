"""The image tower of a CLIP: images in, tokens of the joint space out; loaded when it is first needed.

Shapes: M images, N patches per image, D transformer width, C joint embedding width, S depths.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from anovl_plugin.vision.backbone import Backbone, BackboneSpec, build_visual, check_size, load_backbone, read_spec
from anovl_plugin.vision.value_attention import VisionTokens, class_token_forward, value_wise_forward


class ImageTower(nn.Module):
    """The image tower of a CLIP, loaded when it is first needed, and what is known about it before that.

    Its state dict says which CLIP it is, so a checkpoint without the weights can be checked against its source.

    Args:
        source: Backbone and pretrained, as :func:`~anovl_plugin.vision.backbone.check_source` returns them.
        image_size: Height and width in pixels. Default: the architecture's own.

    Attributes:
        visual: open_clip's vision transformer, frozen; ``None`` until loaded.
        temperature: CLIP's temperature; ``None`` until loaded.
        fingerprint: Identifies the weights and their configuration; ``None`` until loaded.
    """

    visual: Any
    _placement: Tensor

    def __init__(self, source: tuple[str, str | None], image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.source = source
        self.requested_image_size = image_size
        self._spec: BackboneSpec | None = None
        self.temperature: float | None = None
        self.fingerprint: str | None = None
        self.register_module("visual", None)
        # Follows every move and cast, so that a tower that is loaded afterwards can follow, too.
        self.register_buffer("_placement", torch.empty(0), persistent=False)
        self.register_load_state_dict_post_hook(_allow_missing_weights)

    @property
    def spec(self) -> BackboneSpec:
        """Architecture, size and normalization of the CLIP, read when they are first needed."""
        return self._spec or self.read_spec()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the tower takes."""
        return self.requested_image_size or self.spec.image_size

    @property
    def device(self) -> torch.device:
        """Device of the tower, or where it will be once it is loaded."""
        return self._placement.device

    @property
    def has_spec(self) -> bool:
        """Whether architecture, size and normalization are known."""
        return self._spec is not None

    @property
    def is_loaded(self) -> bool:
        """Whether the tower is in memory."""
        return self.visual is not None

    def read_spec(self) -> BackboneSpec:
        """Return the architecture, size and normalization of the CLIP; asks the hub if necessary.

        Raises:
            BackboneError: If the CLIP is unknown or unsupported.
            ValueError: If the image size does not suit its patches.
        """
        return self._use_spec(read_spec(*self.source))

    def load(self) -> None:
        """Load the tower, unless it is loaded already.

        Raises:
            BackboneError: If it cannot be loaded.
        """
        if not self.is_loaded:
            self.set_loaded(load_backbone(*self.source, self.requested_image_size, text=False))

    def set_loaded(self, backbone: Backbone) -> None:
        """Use the image tower of a CLIP that is loaded already."""
        self._use_spec(backbone.spec)
        self.temperature, self.fingerprint = backbone.temperature, backbone.fingerprint
        self._place(cast("nn.Module", backbone.visual))

    def prepare_for_checkpoint(self, state: dict[str, Any], *, has_weights: bool) -> None:
        """Make the tower ready for a checkpoint's state dict.

        Args:
            state: What :meth:`get_extra_state` returned when the checkpoint was made.
            has_weights: Whether the checkpoint holds the weights. If not, they are loaded from their source.

        Raises:
            BackboneError: If the CLIP cannot be loaded.
            ValueError: If the source holds a CLIP other than the one the checkpoint was made with.
        """
        if has_weights:
            spec = self._use_spec(_to_spec(state["spec"]))
            if not self.is_loaded or self.fingerprint != state["fingerprint"]:
                self._place(build_visual(spec.config, self.image_size))
            return
        self.load()
        if self.fingerprint != state["fingerprint"]:
            backbone, pretrained = state["source"]
            msg = (
                f"the checkpoint was made with another CLIP (fingerprint {state['fingerprint']}, backbone "
                f"{backbone!r}, pretrained {pretrained!r}) than this model's (fingerprint {self.fingerprint}, backbone "
                f"{self.source[0]!r}, pretrained {self.source[1]!r}); use the CLIP of the checkpoint"
            )
            raise ValueError(msg)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the vision transformer."""
        return int(self.spec.config["vision_cfg"].get("layers", 12))

    def forward(self, images: Tensor, depths: Sequence[int] = ()) -> VisionTokens:
        """Return class tokens (M, C) and value-wise patch tokens (M, N, C) of normalized images (M, 3, H, W).

        Images of another precision are cast: a trainer casts the tower, but not always the images.

        Args:
            images: Normalized images of the tower's size.
            depths: Blocks of the original path to return the patch tokens of as well, (M, S, N, D). Default: none.
        """
        return value_wise_forward(self.visual, images.to(self._placement.dtype), depths)

    def class_token(self, images: Tensor) -> Tensor:
        """Return class tokens (M, C) of normalized images (M, 3, H, W), slightly cheaper than with patch tokens."""
        return class_token_forward(self.visual, images.to(self._placement.dtype))

    def get_extra_state(self) -> dict[str, Any]:
        """Return which CLIP this is, for the state dict."""
        return {
            "source": self.source,
            "spec": None if self._spec is None else self._spec._asdict(),
            "temperature": self.temperature,
            "fingerprint": self.fingerprint,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what the state dict says about the CLIP."""
        if state["spec"] is not None:
            self._spec = _to_spec(state["spec"])
        self.temperature, self.fingerprint = state["temperature"], state["fingerprint"]

    def _use_spec(self, spec: BackboneSpec) -> BackboneSpec:
        if self.requested_image_size is not None:
            check_size(self.requested_image_size, spec.patch_size, self.source[0])
        self._spec = spec
        return spec

    def _place(self, visual: nn.Module) -> None:
        self.visual = visual.to(self._placement.device, self._placement.dtype)


def _allow_missing_weights(tower: nn.Module, incompatible_keys: Any) -> None:
    """Accept a state dict without weights if the tower has loaded its own."""
    if isinstance(tower, ImageTower) and tower.visual is not None:
        own = tuple(f"visual.{name}" for name in tower.visual.state_dict())
        missing = incompatible_keys.missing_keys
        missing[:] = [key for key in missing if not key.endswith(own)]


def _to_spec(state: dict[str, Any]) -> BackboneSpec:
    return BackboneSpec(state["config"], tuple(state["image_size"]), tuple(state["mean"]), tuple(state["std"]))
