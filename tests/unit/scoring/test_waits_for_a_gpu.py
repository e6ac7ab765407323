"""Views are made where the images are, and the host does not wait for the device between them.

torch's fake tensors stand for tensors on a GPU without one: they have shapes, types and devices, but no values.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from anovl_plugin import AnoVLModel, GlobalScore
from anovl_plugin.vision.views import PAPER, parse_view

# A value that is read, a tensor made from Python's numbers, a shape that depends on values, an inverse that is checked.
WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "unique")


class Waits(TorchDispatchMode):
    """Collects what makes the host wait for the device; values that are read are taken for true."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        device = kwargs.get("device")
        moves = name == "_to_copy" and device is not None and torch.device(device).type != args[0].device.type
        if moves or name in WAITS or name.endswith("check_errors"):
            self.found.append(name)
        return True if name == "_local_scalar_dense" else function(*args, **kwargs)


def to_fake_gpu(model, dtype):
    """Replace all parameters and buffers by fake ones on a GPU; those of the image tower get a precision."""
    for name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, value in tensors.items():
                if value is not None:
                    kind = dtype if name.startswith("image_tower") else value.dtype
                    tensors[key] = torch.empty(value.shape, dtype=kind, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_is_waited_for_once_whatever_its_views(dtype):
    model = AnoVLModel("anovl-demo", class_name="brick", image_score=GlobalScore("paper"))
    with FakeTensorMode(), Waits() as waits:
        to_fake_gpu(model, dtype)
        result = model(torch.empty(3, 3, 96, 96, device="cuda", dtype=dtype))
    assert result.pred_score.device.type == result.anomaly_map.device.type == "cuda"
    # Whether all scores are finite.
    assert waits.found == ["_local_scalar_dense"]


@pytest.mark.parametrize("text", PAPER)
def test_no_view_waits(text):
    with FakeTensorMode(), Waits() as waits:
        assert parse_view(text)(torch.empty(2, 3, 8, 8, device="cuda")).device.type == "cuda"
    assert not waits.found
