"""The hosts have the non-public names that the plugin uses."""

from importlib import import_module

import pytest

NAMES = [
    ("anomalib.pre_processing.utils.spec", "transform_to_spec"),
    ("anomalib.pre_processing.utils.transform", "get_exportable_transform"),
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
    for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        assert isinstance(loop._data_source, _DataLoaderSource)
        assert hasattr(loop._data_source, "instance")
        assert loop._data_source.name.endswith("_dataloader")
