"""What needs a GPU or the hub; skipped, with the reason, where there is none."""

import open_clip
import pytest
import torch
from anomalib.engine import Engine

from anovl_plugin import AnoVL, AnoVLModel
from anovl_plugin.demo import DemoSurfaces
from tests.helpers.tolerances import DEVICE, EXACT


@pytest.mark.gpu
def test_bank_and_scores_on_a_gpu_equal_those_on_the_cpu():
    images = torch.rand(4, 3, 96, 96)
    expected = AnoVLModel("anovl-demo", class_name="brick")(images)
    model = AnoVLModel("anovl-demo").cuda()
    model.build_text_bank("brick")
    assert model.text_bank.state_embeddings.is_cuda
    result = model(images.cuda())
    torch.testing.assert_close(result.anomaly_map.cpu(), expected.anomaly_map, **DEVICE)
    torch.testing.assert_close(result.pred_score.cpu(), expected.pred_score, **DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"])
def test_precisions_on_a_gpu(precision, tmp_path):
    engine = Engine(accelerator="gpu", devices=1, precision=precision, default_root_dir=tmp_path)
    model = AnoVL("anovl-demo", domain="texture", visualizer=False)
    (result,) = engine.test(model, datamodule=DemoSurfaces(root=tmp_path / "data"))
    assert result["pixel_AUROC"] > 0.85


@pytest.mark.network
def test_default_weights_are_those_of_the_paper():
    tag = open_clip.get_pretrained_cfg("ViT-B-16-plus-240", "laion400m_e32")
    file = open_clip.download_pretrained({**tag, "hf_hub": ""})
    expected = AnoVLModel("ViT-B-16-plus-240", file, class_name="bottle")
    model = AnoVLModel(class_name="bottle")
    torch.testing.assert_close(model.text_bank.state_embeddings, expected.text_bank.state_embeddings, **EXACT)
    assert model.image_size == (240, 240)
