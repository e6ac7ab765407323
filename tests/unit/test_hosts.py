"""Every non-public name of a host that the package uses still exists and is what it was.

A row a name: the host's distribution, the name, and a check that returns whether the name can still be used as it is.
Rows for a host belong next to its others; the file that uses them is ``anovl_plugin/hosts/HOST.py`` or the one named.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from operator import attrgetter
from typing import NamedTuple

import open_clip
import pytest
import torch


class Row(NamedTuple):
    """A non-public name of a host."""

    host: str
    name: str
    check: Callable[[], bool]


def takes(name: str, *parameters: str) -> Callable[[], bool]:
    """Check that a function, by its dotted name, has these first parameters."""

    def check() -> bool:
        module, _, attribute = name.rpartition(".")
        return tuple(signature(getattr(import_module(module), attribute)).parameters)[: len(parameters)] == parameters

    return check


def is_class(name: str) -> Callable[[], bool]:
    """Check that a dotted name is a class."""

    def check() -> bool:
        module, _, attribute = name.rpartition(".")
        return isinstance(getattr(import_module(module), attribute), type)

    return check


def build_clip(name: str) -> torch.nn.Module:
    config = open_clip.get_model_config(name)
    is_custom = config.pop("custom_text", False)
    with torch.device("meta"):
        return (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(**config)


def has(path: str, kind: type | tuple[type, ...], *, name: str = "tiny-layerscale") -> Callable[[], bool]:
    """Check that a CLIP of one of the tiny architectures has an attribute, by its dotted path, of a kind."""
    return lambda: isinstance(attrgetter(path)(build_clip(name)), kind)


def weight_of(*shape: int) -> Callable[[torch.nn.Module], bool]:
    return lambda weight: isinstance(weight, torch.nn.Parameter) and weight.shape == shape


BLOCK = "visual.transformer.resblocks"
OPEN_CLIP = [
    Row(
        "open_clip_torch",
        "open_clip.model.convert_to_custom_text_state_dict",
        takes("open_clip.model.convert_to_custom_text_state_dict", "state_dict"),
    ),
    Row(
        "open_clip_torch",
        "open_clip.pretrained.download_pretrained_from_hf",
        takes("open_clip.pretrained.download_pretrained_from_hf", "model_id", "filename"),
    ),
    Row(
        "open_clip_torch",
        "open_clip.transformer.VisionTransformer",
        is_class("open_clip.transformer.VisionTransformer"),
    ),
    Row(
        "open_clip_torch",
        "open_clip.transformer.ResidualAttentionBlock",
        is_class("open_clip.transformer.ResidualAttentionBlock"),
    ),
    # The image tower.
    Row("open_clip_torch", "visual.attn_pool", has("visual.attn_pool", type(None))),
    Row("open_clip_torch", "visual.pool_type", lambda: build_clip("tiny-square").visual.pool_type == "tok"),
    Row("open_clip_torch", "visual.proj", lambda: weight_of(64, 24)(build_clip("tiny-square").visual.proj)),
    Row(
        "open_clip_torch",
        "visual.positional_embedding",
        lambda: weight_of(17, 64)(build_clip("tiny-square").visual.positional_embedding),
    ),
    Row(
        "open_clip_torch",
        "visual.class_embedding",
        lambda: weight_of(64)(build_clip("tiny-square").visual.class_embedding),
    ),
    Row("open_clip_torch", "visual.image_size", lambda: tuple(build_clip("tiny-wide").visual.image_size) == (32, 48)),
    Row("open_clip_torch", "visual.patch_size", lambda: build_clip("tiny-wide").visual.patch_size == (16, 16)),
    Row("open_clip_torch", "visual.grid_size", lambda: build_clip("tiny-wide").visual.grid_size == (2, 3)),
    Row("open_clip_torch", "visual.output_dim", lambda: build_clip("tiny-wide").visual.output_dim == 40),
    Row("open_clip_torch", "visual.conv1", has("visual.conv1", torch.nn.Conv2d)),
    Row("open_clip_torch", "visual.ln_pre", has("visual.ln_pre", torch.nn.LayerNorm)),
    Row("open_clip_torch", "visual.ln_post", has("visual.ln_post", torch.nn.LayerNorm)),
    Row("open_clip_torch", BLOCK, has(BLOCK, torch.nn.ModuleList)),
    Row("open_clip_torch", f"{BLOCK}.attn", has(f"{BLOCK}.0.attn", torch.nn.MultiheadAttention)),
    Row("open_clip_torch", f"{BLOCK}.mlp.gelu", has(f"{BLOCK}.0.mlp.gelu", torch.nn.GELU)),
    *(Row("open_clip_torch", f"{BLOCK}.{ln}", has(f"{BLOCK}.0.{ln}", torch.nn.LayerNorm)) for ln in ("ln_1", "ln_2")),
    *(Row("open_clip_torch", f"{BLOCK}.{ls}", has(f"{BLOCK}.0.{ls}.gamma", torch.Tensor)) for ls in ("ls_1", "ls_2")),
    # The text tower, in both of open_clip's layouts.
    Row("open_clip_torch", "CLIP.text_pool_type", lambda: build_clip("tiny-square").text_pool_type == "argmax"),
    Row("open_clip_torch", "CLIP.attn_mask", has("attn_mask", torch.Tensor)),
    Row("open_clip_torch", "CLIP.positional_embedding", has("positional_embedding", torch.nn.Parameter)),
    Row("open_clip_torch", "CustomTextCLIP.text", has("text", torch.nn.Module, name="tiny-customtext")),
    Row("open_clip_torch", "text.pool_type", lambda: build_clip("tiny-customtext").text.pool_type == "argmax"),
    Row("open_clip_torch", "text.attn_mask", has("text.attn_mask", torch.Tensor, name="tiny-customtext")),
    Row("open_clip_torch", "text.cls_emb", has("text.cls_emb", type(None), name="tiny-customtext")),
    Row(
        "open_clip_torch",
        "text.positional_embedding",
        has("text.positional_embedding", torch.nn.Parameter, name="tiny-customtext"),
    ),
    Row(
        "open_clip_torch",
        "SimpleTokenizer.encode",
        lambda: len(open_clip.SimpleTokenizer().encode("rust on a nut")) == 4,
    ),
]
WINCLIP = "anomalib.models.image.winclip.torch_model"
ANOMALIB = [
    Row("anomalib", f"{WINCLIP}.TEMPERATURE", lambda: import_module(WINCLIP).TEMPERATURE == 0.07),
    Row("anomalib", f"{WINCLIP}.WinClipModel", is_class(f"{WINCLIP}.WinClipModel")),
    Row(
        "anomalib",
        "WinClipModel.__init__",
        lambda: (
            tuple(signature(import_module(WINCLIP).WinClipModel).parameters)
            == ("class_name", "reference_images", "scales", "apply_transform")
        ),
    ),
    Row(
        "anomalib",
        "WinClipModel._generate_masks",
        lambda: tuple(signature(import_module(WINCLIP).WinClipModel._generate_masks).parameters) == ("self",),
    ),
    Row(
        "anomalib",
        "WinClipModel.register_buffer_list",
        lambda: "persistent" in signature(import_module(WINCLIP).WinClipModel.register_buffer_list).parameters,
    ),
]
ROWS = [*OPEN_CLIP, *ANOMALIB]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.host}:{row.name}")
def test_name_is_what_it_was(row):
    try:
        is_same, cause = row.check(), "it is something else now"
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        is_same, cause = False, f"{type(error).__name__}: {error}"
    assert is_same, f"{row.host} {version(row.host)} changed {row.name} ({cause}); adapt what uses it"


NAMES = [
    ("anomalib.data.utils.image", "is_image_file"),
    ("anomalib.pre_processing.utils.spec", "transform_to_spec"),
    ("anomalib.pre_processing.utils.transform", "get_exportable_transform"),
    ("anomalib.utils.path", "create_versioned_dir"),
    ("anomalib.utils.path", "get_datasets_dir"),
    ("lightning.pytorch.overrides.distributed", "UnrepeatedDistributedSampler"),
    ("lightning.pytorch.trainer.connectors.data_connector", "_DataLoaderSource"),
    ("lightning.pytorch.utilities.data", "_update_dataloader"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_host_has_the_name(module, name):
    assert hasattr(import_module(module), name), f"{module} no longer has {name}; see anovl_plugin/hosts"


def test_anomalib_pre_processor_has_both_transforms():
    from anomalib.pre_processing import PreProcessor

    made = PreProcessor()
    assert made.transform is made.export_transform is None


def test_lightning_loops_have_their_sources():
    from lightning.pytorch import Trainer
    from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource

    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert trainer._accelerator_connector.use_distributed_sampler is True
    loops = trainer.validate_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.test_loop, trainer.predict_loop
    for loop in loops:
        assert isinstance(loop._data_source, _DataLoaderSource)
        assert hasattr(loop._data_source, "instance")
        assert loop._data_source.name.endswith("_dataloader")


def test_lightning_trainer_has_its_folder_and_callbacks(tmp_path):
    from lightning.pytorch import Trainer

    from anovl_plugin.hosts.lightning import callbacks_of, is_preliminary, set_root_folder

    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    set_root_folder(trainer, tmp_path)
    assert trainer.default_root_dir == str(tmp_path)
    assert callbacks_of(trainer) is trainer.callbacks
    assert trainer.validate_loop.verbose is True
    assert is_preliminary(trainer) is False


def test_a_loader_with_another_sampler_has_workers_of_its_own():
    from lightning.fabric.utilities.data import _replace_dunder_methods
    from torch.utils.data import DataLoader

    from anovl_plugin.hosts.lightning import replace_sampler

    values = [1, 2]
    # Here Lightning takes note of every attribute that is set, and repeats it.
    with _replace_dunder_methods(DataLoader, "dataset"):
        loader = DataLoader(values, batch_size=None, num_workers=1, persistent_workers=True)
        assert list(loader) == [1, 2]
    values[:] = [3, 4]
    assert list(replace_sampler(loader, loader.sampler)) == [3, 4]


def test_open_clip_details_are_at_debug(caplog):
    import logging

    from anovl_plugin.hosts.open_clip import log_as_details

    for level, expected in ((logging.INFO, []), (logging.DEBUG, ["DEBUG"])):
        caplog.clear()
        with caplog.at_level(level), log_as_details():
            # As newer versions log it; older ones say less.
            detail = logging.LogRecord("root", logging.INFO, open_clip.factory.__file__, 1, "Parsing", (), None)
            logging.getLogger().handle(detail)
        found = [record.levelname for record in caplog.records if record.pathname == open_clip.factory.__file__]
        assert found == expected
