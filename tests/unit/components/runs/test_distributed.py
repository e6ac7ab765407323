"""Division of a loader's images among processes."""

import inspect
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import Folder, PredictDataset
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from anovl_plugin.components.runs.distributed import (
    SameImages,
    SplitError,
    UnpaddedEvaluationSampler,
    hash_subsets,
    unpadded_share,
)
from tests.helpers.image_datasets import write_images


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_each_image_goes_to_one_process(size, bottles):
    datamodule = bottles()
    datamodule.setup()
    whole = datamodule.test_dataloader()
    shares = [unpadded_share(whole, rank, size) for rank in range(size)]
    seen = [path for share in shares for batch in share for path in batch.image_path]
    assert sorted(seen) == sorted(item.image_path for item in datamodule.test_data)
    assert isinstance(whole.sampler, SequentialSampler)


def test_a_share_keeps_all_arguments_of_its_loader():
    given = {
        "batch_size": 3,
        "num_workers": 2,
        "collate_fn": list,
        "pin_memory": True,
        "drop_last": True,
        "timeout": 5,
        "worker_init_fn": print,
        "multiprocessing_context": "spawn",
        "generator": torch.Generator(),
        "prefetch_factor": 4,
        "persistent_workers": True,
        "pin_memory_device": "",
        "in_order": False,
    }
    chosen = {"self", "dataset", "shuffle", "sampler", "batch_sampler"}
    # Newer arguments of PyTorch belong in this test, too.
    assert set(given) | chosen == set(inspect.signature(DataLoader.__init__).parameters)
    loader = DataLoader(range(10), **given)
    share = unpadded_share(loader, 1, 2)
    assert list(share.sampler) == [1, 3, 5, 7, 9]
    for name in given:
        assert getattr(share, name) == getattr(loader, name), name


def test_other_loaders_are_left_to_lightning():
    batches = BatchSampler(SequentialSampler(range(9)), 2, drop_last=False)
    for options in ({"shuffle": True}, {"batch_sampler": batches}, {"batch_size": None}):
        loader = DataLoader(range(9), **options)
        assert unpadded_share(loader, 0, 3) is loader
    loader = DataLoader(range(2))
    assert unpadded_share(loader, 0, 3) is loader


@pytest.mark.parametrize(
    ("size", "chosen", "predicting", "divided"),
    [(2, True, False, True), (1, True, False, False), (2, False, False, False), (2, True, True, False)],
    ids=["evaluation", "one process", "switched off", "prediction"],
)
def test_when_images_are_divided(size, chosen, predicting, divided):
    trainer = SimpleNamespace(
        world_size=size,
        global_rank=0,
        predicting=predicting,
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=chosen),
    )
    loader = DataLoader(range(9))
    assert (UnpaddedEvaluationSampler().change_loader(loader, trainer) is not loader) == divided


def test_subsets_are_known_by_the_names_of_their_images(bare, tmp_path):
    def hashed(folder):
        return hash_subsets(SimpleNamespace(test_data=PredictDataset(folder), val_data=None))

    elsewhere = shutil.copytree(bare, tmp_path / bare.name)
    assert hashed(elsewhere) == hashed(bare)
    next(elsewhere.iterdir()).unlink()
    assert hashed(elsewhere) != hashed(bare)


@pytest.mark.parametrize("seed", [None, 0])
def test_synthetic_defects_may_differ_where_the_other_images_do_not(seed, tmp_path):
    write_images(tmp_path / "good", 12, seed=1)

    def hashed():
        options = {"normal_dir": "good", "test_split_mode": "synthetic", "val_split_mode": "synthetic", "seed": seed}
        datamodule = Folder("nuts", root=tmp_path, **options)
        datamodule.setup()
        return hash_subsets(datamodule)

    assert (hashed() == hashed()) == (seed == 0)


@pytest.mark.parametrize(
    ("size", "divides", "agree", "fails"),
    [
        (1, True, False, False),
        (2, True, True, False),
        (2, True, False, True),
        # A data module that gives each process a share of its own.
        (2, False, False, False),
    ],
)
def test_processes_must_have_the_same_images(size, divides, agree, fails, bottles):
    datamodule = bottles()
    datamodule.setup()
    strategy = SimpleNamespace(
        broadcast=lambda value: value if agree else "another", reduce_boolean_decision=lambda value: value
    )
    connector = SimpleNamespace(use_distributed_sampler=divides)
    trainer = SimpleNamespace(
        world_size=size, datamodule=datamodule, strategy=strategy, _accelerator_connector=connector
    )
    error = pytest.raises(SplitError, match=r"^each of the 2 processes has different images, .* --data.seed 0$")
    with error if fails else nullcontext():
        SameImages().setup(trainer, None, "test")
