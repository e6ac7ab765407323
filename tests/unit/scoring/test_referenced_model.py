"""A model with reference images against the slow references, and what it promises whoever gives it some."""

import re

import pytest
import torch
from torch.testing import assert_close

from anovl_plugin import AnoVLModel, CombinedScore, GlobalScore, LinearAdapter, MapScore, PatchMemory, PatchSubspace
from anovl_plugin.scoring.scores import map_score
from tests.helpers import reference_model
from tests.helpers import reference_references as slow
from tests.helpers.random_tensors import images_for, noise
from tests.helpers.tolerances import EXACT, FLOAT32, HALF_PRECISION, REFERENCE

NAME = "tiny-square"
PARTS = {
    "memory": PatchMemory(depths=[1, 3], value_wise=True),
    "subspace": PatchSubspace(depths=[2], variance=0.8),
}
all_parts = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)


@pytest.fixture(scope="module")
def make_model(weights_of):
    """Return a function that creates a model with a reference bank of some images."""

    def make(part, images=None, **options):
        model = AnoVLModel(NAME, pretrained=weights_of(NAME), class_name="bottle", references=part, **options)
        model.build_reference_bank(images_for(model, 3, seed=1) if images is None else images)
        return model

    return make


def bank_of(model):
    return next(iter(model.reference_banks))


def unit_lists(tokens):
    return torch.nn.functional.normalize(tokens, dim=-1).tolist()


def slow_distance(part, patch, images):
    if isinstance(part, PatchSubspace):
        return slow.subspace_distance(patch, images, part.variance)
    return slow.memory_distance(patch, images)


def expected(part, weights, references, images):
    """Return the score (B,) and the map (B, 1, H, W) that the formulas give, as probabilities."""
    visual = reference_model.load(NAME, weights)[0].visual
    states, _ = reference_model.text_bank(NAME, weights, "bottle")

    def sources(batch):
        blocks = reference_model.block_tokens(visual, batch, tuple(part.depths)).unbind(1)
        local = [reference_model.vision_tokens(visual, batch)[1]] if part.value_wise else []
        return [unit_lists(each) for each in (*blocks, *local)]

    def mean_distance(patches, fitted):
        return sum(slow_distance(part, patch, images) for patch, images in zip(patches, fitted, strict=True)) / len(
            patches
        )

    def text_margins(batch):
        return [
            [reference_model.p_abnormal(token, states) - 0.5 for token in image]
            for image in reference_model.vision_tokens(visual, batch)[1]
        ]

    bank = sources(references)
    count, patches = len(references), len(bank[0][0])
    unseen = [
        mean_distance([each[at][patch] for each in bank], [each[:at] + each[at + 1 :] for each in bank])
        for at in range(count)
        for patch in range(patches)
    ]
    mean, deviation = slow.mean_and_deviation(unseen)
    text_mean, text_deviation = slow.mean_and_deviation([each for image in text_margins(references) for each in image])
    queries, maps = sources(images), []
    for at, margins in enumerate(text_margins(images)):
        distances = [mean_distance([each[at][patch] for each in queries], bank) for patch in range(patches)]
        scaled = [text_mean + text_deviation * (distance - mean) / deviation for distance in distances]
        both = [(1 - part.weight) * text + part.weight * own for text, own in zip(margins, scaled, strict=True)]
        maps.append(reference_model.smooth_map(both, (4, 4), (32, 32)))
    globals_ = [
        reference_model.p_abnormal(token, states) - 0.5 for token in reference_model.vision_tokens(visual, images)[0]
    ]
    scores = []
    for own, anomaly_map in zip(globals_, maps, strict=True):
        highest = sorted(anomaly_map.flatten().tolist(), reverse=True)[: max(1, round(part.top_fraction * 32 * 32))]
        scores.append((1 - part.weight) * own + part.weight * sum(highest) / len(highest))
    shown = [
        reference_model.displayed(torch.as_tensor(each).double() + 0.5, NAME, weights)
        for each in (scores, torch.stack(maps))
    ]
    return shown[0].float(), shown[1].float().view(len(images), 1, 32, 32)


@all_parts
def test_scores_and_maps_equal_the_formulas(part, make_model, weights_of):
    model = make_model(part)
    images = images_for(model, 2)
    scores, maps = expected(part, weights_of(NAME), images_for(model, 3, seed=1), images)
    result = model(images)
    assert_close(result.anomaly_map, maps, atol=2e-4, rtol=0)
    assert_close(result.pred_score, scores, atol=2e-4, rtol=0)


def test_a_weight_of_0_is_the_text_alone(make_model, weights_of):
    model = make_model(PatchMemory(weight=0))
    plain = AnoVLModel(NAME, pretrained=weights_of(NAME), class_name="bottle")
    images = images_for(model, 2)
    assert_close(model(images).anomaly_map, plain(images).anomaly_map, **EXACT)
    assert_close(model(images).pred_score, plain(images).pred_score, **EXACT)


def test_a_weight_of_1_is_the_references_alone(make_model):
    model = make_model(PatchMemory(weight=1, top_fraction=0))
    images = images_for(model, 3, seed=1)
    # A reference image is at the distance 0 of itself, so its map is flat.
    own = model(images)
    assert_close(own.anomaly_map.flatten(1).std(1), torch.zeros(3), **REFERENCE)
    other = model(images_for(model, 2))
    assert other.anomaly_map.mean() > own.anomaly_map.mean()
    assert_close(other.pred_score, map_score(other.anomaly_map), **FLOAT32)


@pytest.mark.parametrize("image_score", [GlobalScore(["image", "flip"]), MapScore(0.1), CombinedScore()])
def test_image_score_takes_both(image_score, make_model):
    half = make_model(PatchMemory(top_fraction=0.01), image_score=image_score)
    text = PatchMemory(weight=0)
    images = images_for(half, 2)
    assert (half(images).pred_score - make_model(text, image_score=image_score)(images).pred_score).abs().min() > 1e-4


@all_parts
@pytest.mark.parametrize("adaptation", [None, LinearAdapter(steps=1)])
def test_an_image_alone_is_the_image_in_a_batch(part, adaptation, make_model):
    model = make_model(part, adaptation=adaptation)
    images = images_for(model, 3)
    whole = model(images)
    for at in (2, 0, 1):
        alone = model(images[at : at + 1])
        assert_close(alone.anomaly_map[0], whole.anomaly_map[at], atol=2e-4, rtol=0)
        assert_close(alone.pred_score[0], whole.pred_score[at], atol=2e-4, rtol=0)


def test_adaptation_reaches_the_scale(make_model):
    plain, adapted = make_model(PatchMemory()), make_model(PatchMemory(), adaptation=LinearAdapter(steps=2))
    one, other = bank_of(plain).scale, bank_of(adapted).scale
    assert_close(one.distance_std, other.distance_std, **EXACT)
    assert (one.margin_mean - other.margin_mean).abs() > 1e-6


@pytest.mark.parametrize("sizes", [[(56, 56)] * 2, [(56, 56), (32, 56)]])
def test_references_are_tiled_like_images(sizes, make_model):
    images = [noise(3, *size, seed=at) for at, size in enumerate(sizes)]
    model = make_model(PatchMemory(weight=1), images, tiles_per_side=2)
    assert bank_of(model).fitted["tokens_0"].shape[0] == 2 * 4 * 16
    flat = model(images[0][None]).anomaly_map
    assert flat.shape == (1, 1, 56, 56)
    assert_close(flat.std().item(), 0.0, **REFERENCE)


def test_views_of_references_are_references(make_model):
    model = make_model(PatchMemory(weight=1, views=["image", "rotate 180"]))
    images = images_for(model, 3, seed=1)
    assert bank_of(model).fitted["tokens_0"].shape[0] == 3 * 2 * 16
    turned = model(images.rot90(2, (-2, -1))).anomaly_map
    assert_close(turned.flatten(1).std(1), torch.zeros(3), atol=1e-3, rtol=0)


@all_parts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(part, dtype, make_model):
    model = make_model(part)
    images = images_for(model, 2)
    before = model(images)
    after = model.to(dtype)(images)
    assert after.anomaly_map.dtype == torch.float32
    assert bank_of(model).scale.distance_std.dtype == torch.float32
    assert_close(after.anomaly_map, before.anomaly_map, atol=0.1, rtol=0)
    assert (after.anomaly_map - before.anomaly_map).abs().mean() < HALF_PRECISION["atol"]


def test_equal_source_keeps_the_bank(make_model):
    model = make_model(PatchMemory())
    images = images_for(model, 2)
    assert model.build_reference_bank(images)
    assert model.build_reference_bank(images, source="folder")
    assert not model.build_reference_bank(images, source="folder")
    assert model.build_reference_bank(images, source="another folder")


@all_parts
@pytest.mark.filterwarnings("ignore:.* are copies of others")
def test_copies_of_reference_images_change_nothing(part, make_model):
    plain = make_model(part)
    one, two, three = images_for(plain, 3, seed=1)
    copied = make_model(part, [one, one, two, three, two])
    images = images_for(plain, 2)
    assert_close(copied(images).anomaly_map, plain(images).anomaly_map, **EXACT)
    assert_close(copied(images).pred_score, plain(images).pred_score, **EXACT)
    only = make_model(part, [one])
    assert_close(make_model(part, [one, one])(images).anomaly_map, only(images).anomaly_map, **EXACT)
    with pytest.raises(ValueError, match=r"^PatchMemory needs at least 2 reference images, .* 1; give more$"):
        make_model(PatchMemory(unlabelled=True), [one, one])


@pytest.mark.parametrize(("count", "share", "is_single"), [(4, 0.3, True), (5, 0.3, False), (4, 0.5, False)])
def test_unlabelled_images_of_which_a_single_one_counts(count, share, is_single, make_model, recwarn):
    model = make_model(PatchMemory())
    many = images_for(model, count, seed=1)
    recwarn.clear()
    images, part = images_for(model, 2), PatchMemory(unlabelled=True, lowest_share=share)
    result, nearest = make_model(part, many)(images), make_model(PatchMemory(), many)(images)
    assert torch.allclose(result.anomaly_map, nearest.anomaly_map, **EXACT) == is_single
    expected = (
        f"PatchMemory takes the lowest {share} of the distances to {count} unlabelled reference images, which is a "
        "single one, so a defect in one image is normal in all; give more, or a higher lowest_share"
    )
    assert [str(each.message) for each in recwarn] == [expected] * is_single


def test_state_dict_holds_the_references(make_model, weights_of):
    model = make_model(PatchMemory())
    other = AnoVLModel(NAME, pretrained=weights_of(NAME), references=PatchMemory())
    other.load()
    other.load_state_dict(model.state_dict())
    images = images_for(model, 2)
    assert_close(other(images).anomaly_map, model(images).anomaly_map, **EXACT)


def refuse(message):
    return re.escape(message)


def test_what_a_bank_must_belong_to(make_model):
    model = make_model(PatchMemory())
    images = images_for(model, 1)
    model.build_text_bank("cable")
    with pytest.raises(RuntimeError, match=refuse("the model has no reference bank of class 'cable' yet; call build")):
        model(images)
    model = make_model(PatchMemory())
    model.build_text_bank("bottle", "texture")
    with pytest.raises(ValueError, match=refuse("the reference bank was built with other prompts; build it again")):
        model(images)
    model = make_model(PatchMemory())
    model.adaptation = LinearAdapter()
    with pytest.raises(ValueError, match=refuse("with another image_size, tiles_per_side or adaptation; build it")):
        model(images)
    model = make_model(PatchMemory())
    model.references = PatchMemory(depths=[1])
    with pytest.raises(ValueError, match=refuse("was built with other settings of references; build it again with")):
        model(images)
    model = make_model(PatchMemory())
    bank_of(model).identity = bank_of(model).identity._replace(fingerprint="0")
    with pytest.raises(ValueError, match=refuse("the reference bank was built with another CLIP; build it again with")):
        model(images)


def test_averaging_otherwise_takes_the_same_bank(make_model):
    model = make_model(PatchMemory())
    images = images_for(model, 2)
    model.references = other = PatchMemory(weight=0.6, top_fraction=0.2)
    found, expected = model(images), make_model(other)(images)
    assert_close(found.anomaly_map, expected.anomaly_map, **EXACT)
    assert_close(found.pred_score, expected.pred_score, **EXACT)


def test_what_is_missing(weights_of):
    model = AnoVLModel(NAME, pretrained=weights_of(NAME), references=PatchMemory())
    images = images_for(model, 1)
    with pytest.raises(RuntimeError, match=r"^the model has no text bank yet; "):
        model.build_reference_bank(images)
    model.build_text_bank("bottle")
    with pytest.raises(RuntimeError, match=r"^the model has no reference bank of class 'bottle' yet; call build"):
        model(images)
    with pytest.raises(ValueError, match=r"^PatchMemory needs at least 1 reference image, but there are 0; give more$"):
        model.build_reference_bank([])
    plain = AnoVLModel(NAME, pretrained=weights_of(NAME), class_name="bottle")
    with pytest.raises(RuntimeError, match=r"^the model has no references to compare with; set references, e.g. to"):
        plain.build_reference_bank(images)


def test_depths_are_checked_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"^depths of PatchMemory is \[6\], but the image tower has 5 blocks; use"):
        AnoVLModel("anovl-demo", references=PatchMemory(depths=[6]))


def test_each_image_is_compared_with_the_references_of_its_class(weights_of):
    model = AnoVLModel(NAME, pretrained=weights_of(NAME), references=PatchMemory(weight=1))
    model.build_text_banks(["bottle", "cable"])
    groups = {"bottle": images_for(model, 2, seed=1), "cable": images_for(model, 2, seed=2)}
    for class_name, images in groups.items():
        assert model.build_reference_bank(list(images), class_name, source=class_name)
    images, index = torch.cat(list(groups.values())), torch.tensor([0, 0, 1, 1])
    spread = model(images, index).anomaly_map.flatten(1).std(1)
    assert_close(spread, torch.zeros(4), **REFERENCE)
    swapped = model(images, 1 - index).anomaly_map.flatten(1).std(1)
    assert (swapped > 1e-2).all()
    # A graph compares each image with all classes and then chooses.
    tokens = model.encode(images[:, None], model.reference_banks.depths)
    chosen = [each.flatten(1, 2) for each in model.references.select(tokens)]
    names = model.text_banks.class_names
    margins = model.reference_banks.margins(model.references, chosen, names, index)
    for row, class_name in enumerate(names):
        own = model.reference_banks.margins(model.references, chosen, [class_name])
        assert_close(margins[index == row], own[index == row], **EXACT)
    # Banks of both classes travel, whatever their order.
    other = AnoVLModel(NAME, pretrained=weights_of(NAME), references=PatchMemory(weight=1))
    other.load()
    other.load_state_dict(model.state_dict())
    assert_close(other(images, index).anomaly_map, model(images, index).anomaly_map, **EXACT)
    model.build_text_banks(["cable", "bottle"])
    assert_close(model(images, 1 - index).anomaly_map.flatten(1).std(1), torch.zeros(4), **REFERENCE)


def test_a_bank_of_an_unknown_class(weights_of):
    model = AnoVLModel(NAME, pretrained=weights_of(NAME), class_name="bottle", references=PatchMemory())
    with pytest.raises(ValueError, match=r"^there is no text bank of class 'cable', only of 'bottle'$"):
        model.build_reference_bank(images_for(model, 1), "cable")
