"""Distances to reference images, their scale, and the bank, against the slow references."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from anovl_plugin.config import loading_checkpoint
from anovl_plugin.scoring import patch_memory
from anovl_plugin.scoring.patch_memory import PatchMemory, choose_coreset, highest_cosine
from anovl_plugin.scoring.patch_subspace import PatchSubspace, principal_directions
from anovl_plugin.scoring.reference_bank import BankIdentity, ReferenceBank, parse_references
from anovl_plugin.scoring.references import References, find_scale, held_out, without_copies
from anovl_plugin.vision.value_attention import VisionTokens
from tests.helpers import reference_references as slow
from tests.helpers.random_tensors import noise
from tests.helpers.tolerances import EXACT, FLOAT32, REFERENCE

WIDTH, PATCHES = 6, 8
PARTS = {
    "memory": PatchMemory(),
    "unlabelled": PatchMemory(unlabelled=True, lowest_share=0.5),
    "subspace": PatchSubspace(variance=0.7),
    "trimmed": PatchSubspace(variance=0.7, unlabelled=True),
}
all_parts = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
IDENTITY = BankIdentity(
    class_name="nut", fingerprint="0", prompts="1", preparation="[]", images=None, num_images=3, depths=(1,)
)


def units(*shape, seed=0):
    return F.normalize(noise(*shape, seed=seed), dim=-1)


def slow_distance(part, patch, images):
    if isinstance(part, PatchSubspace):
        return slow.subspace_distance(patch, images, part.variance, trimmed=part.unlabelled)
    return slow.memory_distance(patch, images, part.lowest_share if part.unlabelled else None)


def slow_distances(part, queries, images):
    return [[slow_distance(part, patch, images) for patch in image] for image in queries.tolist()]


@all_parts
@pytest.mark.parametrize("depths", [1, 2])
def test_distances_are_those_of_the_formula(part, depths):
    references = [units(3, PATCHES, WIDTH, seed=depth) for depth in range(depths)]
    queries = [units(2, 5, WIDTH, seed=10 + depth) for depth in range(depths)]
    distances = part.distances(queries, part.fit(references))
    expected = [
        torch.tensor(slow_distances(part, query, reference.tolist()))
        for query, reference in zip(queries, references, strict=True)
    ]
    assert_close(distances, torch.stack(expected).mean(0), **FLOAT32)


@all_parts
@pytest.mark.parametrize("count", [1, 3])
def test_scale_is_that_of_references_the_fit_has_not_seen(part, count):
    references, margins = units(count, PATCHES, WIDTH), 0.1 * noise(count, PATCHES)
    scale = find_scale(part, [references], margins)
    unseen = [
        slow_distance(part, patch, others) for image, others in slow.splits(references.tolist()) for patch in image
    ]
    expected = [*slow.mean_and_deviation(unseen), *slow.mean_and_deviation(margins.flatten().tolist())]
    assert_close(torch.stack(scale), torch.tensor(expected), **FLOAT32)
    distance = torch.tensor(0.3)
    mean, deviation, text_mean, text_deviation = expected
    assert_close(scale.to_margins(distance).item(), text_mean + text_deviation * (0.3 - mean) / deviation, **REFERENCE)


def test_at_most_eight_images_are_held_out_evenly():
    tokens = torch.arange(20.0).view(20, 1, 1)
    pairs = list(held_out([tokens]))
    assert [unseen[0].item() for (unseen,), _ in pairs] == [0, 2, 5, 7, 10, 12, 15, 17]
    for (unseen,), (seen,) in pairs:
        assert sorted([*seen.flatten().tolist(), unseen.item()]) == list(range(20))


def test_halves_of_a_single_image_are_of_one_view():
    tokens = torch.arange(10.0).view(1, 10, 1)
    pairs = [(unseen.flatten().tolist(), seen.flatten().tolist()) for (unseen,), (seen,) in held_out([tokens], views=2)]
    assert pairs == [([0, 1], [2, 3, 4]), ([2, 3, 4], [0, 1])]


def test_copies_of_one_image_have_a_scale():
    references = units(1, PATCHES, WIDTH).expand(3, -1, -1)
    scale = find_scale(PatchMemory(), [references], torch.zeros(3, PATCHES))
    assert_close(torch.stack(scale), torch.tensor([0, 1e-4, 0, 1e-4]), **FLOAT32)


def test_a_single_patch_has_no_scale():
    with pytest.raises(ValueError, match=r"^the only reference image has a single patch, .* use two images$"):
        find_scale(PatchMemory(), [units(1, 1, WIDTH)], torch.zeros(1, 1))


@all_parts
@settings(max_examples=20)
@given(order=st.permutations(range(4)), size=st.integers(1, 4))
def test_an_image_depends_on_itself_and_the_references_alone(part, order, size):
    references, queries = units(4, PATCHES, WIDTH), units(4, 5, WIDTH, seed=1)
    fitted = part.fit([references])
    whole = part.distances([queries], fitted)
    shuffled = torch.cat([part.distances([each], fitted) for each in queries[list(order)].split(size)])
    assert_close(shuffled, whole[list(order)], **FLOAT32)
    reordered = part.distances([queries], part.fit([references[list(order)]]))
    assert_close(reordered, whole, **REFERENCE)


def test_comparing_in_parts_changes_nothing(monkeypatch):
    queries, references = units(50, WIDTH), units(70, WIDTH, seed=1)
    whole = highest_cosine(queries, references)
    monkeypatch.setattr(patch_memory, "_QUERIES_ON_CPU", 7)
    monkeypatch.setattr(patch_memory, "_REFERENCES", 9)
    assert_close(highest_cosine(queries, references), whole, **FLOAT32)
    assert_close(whole, (queries @ references.T).amax(1), **FLOAT32)


def test_a_defect_of_one_unlabelled_image_remains_a_defect():
    references = units(1, PATCHES, WIDTH).repeat(10, 1, 1)
    defect = units(1, 1, WIDTH, seed=5)
    references[0, 0] = defect
    labeled, unlabelled = PatchMemory(), PatchMemory(unlabelled=True)
    assert labeled.distances([defect], labeled.fit([references])) < 1e-6
    assert unlabelled.distances([defect], unlabelled.fit([references])) > 0.05


def test_a_few_defects_among_unlabelled_images_do_not_span_the_subspace():
    # Normal patches differ in two directions, and each of four defects in one of its own.
    references = 0.01 * noise(10, PATCHES, 8)
    references[..., :2] += noise(10, PATCHES, 2, seed=1)
    references[0, :4] = 3 * torch.eye(8)[2:6]
    defects = references[:1, :4]
    labeled, unlabelled = PatchSubspace(variance=0.9), PatchSubspace(variance=0.9, unlabelled=True)
    assert labeled.distances([defects], labeled.fit([references])).min() < 2
    assert unlabelled.distances([defects], unlabelled.fit([references])).min() > 2.5


def test_coreset_is_part_of_the_memory_and_leaves_the_random_state_alone():
    tokens = units(40, WIDTH)
    before = torch.get_rng_state()
    chosen = choose_coreset(tokens, 0.25)
    assert_close(torch.get_rng_state(), before, **EXACT)
    assert chosen.shape == (10, WIDTH)
    assert all((tokens == each).all(1).any() for each in chosen)
    assert_close(choose_coreset(tokens, 0.25), chosen, **EXACT)
    assert len(choose_coreset(tokens, 0.001)) == 1


@pytest.mark.parametrize("count", [49, 98, 103])
def test_the_smallest_coreset_is_one_token(count):
    # 1 / 49 · 49 is below 1 in floating-point numbers.
    assert len(choose_coreset(units(count, WIDTH), 1e-3)) == 1
    assert len(choose_coreset(units(count, WIDTH), 1)) == count


def test_coreset_covers_distant_groups():
    groups = torch.eye(4).repeat_interleave(25, 0) + 0.01 * noise(100, 4)
    chosen = choose_coreset(F.normalize(groups, dim=-1), 0.04)
    assert sorted(chosen.argmax(1).tolist()) == [0, 1, 2, 3]


def test_memory_with_a_coreset_keeps_a_share():
    fitted = PatchMemory(coreset=0.5).fit([units(2, PATCHES, WIDTH)])
    assert fitted["tokens_0"].shape == (PATCHES, WIDTH)


@pytest.mark.parametrize("variance", [0, 0.5, 0.999])
def test_directions_are_orthonormal_and_as_few_as_carry_the_variance(variance):
    tokens = noise(50, WIDTH) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.25])
    mean, directions = principal_directions(tokens, variance)
    assert_close(directions.T @ directions, torch.eye(directions.shape[1]), **REFERENCE)
    centered = tokens - mean
    carried = ((centered @ directions) ** 2).sum() / (centered**2).sum()
    assert carried >= variance
    if directions.shape[1]:
        fewer = ((centered @ directions[:, :-1]) ** 2).sum() / (centered**2).sum()
        assert fewer < variance


def test_equal_tokens_have_no_direction():
    mean, directions = principal_directions(torch.ones(5, 3), 0.99)
    assert_close(mean, torch.ones(3), **EXACT)
    assert directions.shape == (3, 0)


def test_selected_tokens_are_unit_vectors_of_depths_and_value_wise_path():
    tokens = VisionTokens(noise(2, 4), 3 * noise(2, 9, 4), 5 * noise(2, 3, 9, 7).half())
    chosen = PatchMemory(value_wise=True).select(tokens)
    assert [each.shape for each in chosen] == [(2, 9, 7)] * 3 + [(2, 9, 4)]
    for each in chosen:
        assert each.dtype == torch.float32
        assert_close(each.norm(dim=-1), torch.ones(2, 9), **FLOAT32)
    assert len(PatchMemory().select(tokens)) == 3
    assert len(PatchMemory(depths=[], value_wise=True).select(tokens._replace(block_tokens=None))) == 1


def built(part=None, references=None):
    part = part or PatchMemory()
    bank = ReferenceBank()
    tokens = units(3, PATCHES, WIDTH) if references is None else references
    bank.build(part, [tokens], 0.1 * noise(3, PATCHES), IDENTITY)
    return bank


@all_parts
def test_margins_of_a_bank_are_scaled_distances(part):
    bank, queries = built(part), units(2, 5, WIDTH, seed=1)
    fitted = part.fit([units(3, PATCHES, WIDTH)])
    scale = find_scale(part, [units(3, PATCHES, WIDTH)], 0.1 * noise(3, PATCHES))
    expected = scale.to_margins(part.distances([queries], fitted))
    assert_close(bank.margins(part, [queries]), expected, **EXACT)


@all_parts
def test_state_dict_takes_the_bank_anywhere(part):
    bank, other = built(part), built(PatchSubspace(depths=[1, 2]))
    for target in (ReferenceBank(), other):
        target.load_state_dict(bank.state_dict())
        assert target.identity == IDENTITY
        assert isinstance(parse_references(target.settings), type(part))
        queries = units(2, 5, WIDTH, seed=1)
        assert_close(target.margins(part, [queries]), bank.margins(part, [queries]), **EXACT)
    other.load_state_dict(ReferenceBank().state_dict())
    assert not other.is_built
    assert not other.held


def test_bank_stays_in_float32():
    bank = built()
    before = bank.scale
    assert_close(bank.half().scale, before, **EXACT)
    assert all(tensor.dtype == torch.float32 for tensor in bank.fitted.values())


def test_bank_can_be_built_in_inference_mode_and_loaded_into():
    with torch.inference_mode():
        bank = built()
    bank.load_state_dict(built().state_dict())
    assert not bank.scale.distance_mean.is_inference()


def test_bank_says_what_it_takes():
    assert built().num_bytes == 4 * (3 * PATCHES * WIDTH + 4)


def test_damaged_banks_are_refused():
    with pytest.raises(ValueError, match=r"^the reference bank of 'nut' holds NaN .*; check the reference images"):
        built(references=torch.full((3, PATCHES, WIDTH), torch.nan))
    state = built().state_dict()
    state["fitted_tokens_0"][0] = torch.inf
    with pytest.raises(ValueError, match=r"^the reference bank of 'nut' in the checkpoint holds NaN or infinite"):
        ReferenceBank().load_state_dict(state)


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [
        (PatchMemory(), 0, "PatchMemory needs at least 1 reference image, but there are 0; give more"),
        (PatchMemory(unlabelled=True), 1, "PatchMemory needs at least 2 reference images, but there is 1; give more"),
    ],
)
def test_too_few_images(part, count, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ReferenceBank().build(part, [units(count, 1, 4)], noise(count, 1), IDENTITY._replace(num_images=count))


def test_all_distances_to_unlabelled_images_may_count():
    assert PatchMemory(unlabelled=True, lowest_share=1).lowest_share == 1


def test_depths_are_those_given_else_measured_else_the_ends_of_quarters():
    assert PatchMemory(depths=[2, 5]).depths_of(5, "anovl-demo") == (2, 5)
    assert PatchMemory().depths_of(5, "anovl-demo") == (1,)
    assert PatchSubspace().depths_of(5, "anovl-demo") == (3,)
    assert PatchMemory(depths=[], value_wise=True).depths_of(12) == ()
    assert [PatchMemory().depths_of(number) for number in (12, 24, 5, 2, 1)] == [
        (3, 6, 9, 12),
        (6, 12, 18, 24),
        (2, 3, 4, 5),
        (1, 2),
        (1,),
    ]


def test_depths_beyond_the_tower():
    with pytest.raises(ValueError, match=r"^depths of PatchMemory is \[3, 9\], but the image tower has 5 blocks; use"):
        PatchMemory(depths=[3, 9]).depths_of(5)


@dataclass
class Constant(References):
    """Finds nothing unusual."""

    def fit(self, tokens):
        return {"mean": tokens[0].flatten(0, 1).mean(0)}

    def distances(self, tokens, fitted):
        return 0 * (tokens[0] @ fitted["mean"])


def test_references_of_ones_own():
    part = parse_references("Constant")
    bank = built(part)
    assert bank.settings["class_path"].endswith("test_references.Constant")
    assert_close(bank.margins(part, [units(1, 2, WIDTH)]).std().item(), 0.0, **FLOAT32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PatchMemory(depths=[]),
            "depths of PatchMemory is [], and value_wise is false, so there is nothing",
        ),
        (lambda: PatchMemory(coreset=0.1, unlabelled=True), "PatchMemory has both coreset and unlabelled, which needs"),
        (
            lambda: PatchMemory(lowest_share=0.5),
            "lowest_share of PatchMemory is 0.5, but has no effect without unlabelled; omit it, or set unlabelled to",
        ),
        (lambda: PatchMemory(coreset=0), "coreset of PatchMemory is 0, but must be above 0"),
        (lambda: PatchMemory(depths=[1, 1]), "depths of PatchMemory is [1, 1], but must be a list of different block"),
        (lambda: PatchMemory(depths=[0]), "depths of PatchMemory is [0], but must be a list of different block"),
        (lambda: PatchSubspace(variance=1), "variance of PatchSubspace is 1, but must be a number from 0 to 0.999"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


def test_a_setting_without_effect_in_a_checkpoint():
    config = {"class_path": "PatchMemory", "init_args": {"lowest_share": 0.5, "unlabelled": False}}
    with loading_checkpoint():
        assert parse_references(config).lowest_share == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_are_left_out(dtype):
    one, other = noise(3, 4, 6, seed=1).to(dtype), noise(3, 4, 6, seed=2).to(dtype)
    with pytest.warns(UserWarning, match="^2 of 4 reference images are copies of others, which say nothing new"):
        distinct = without_copies([one, other, one.clone(), other.clone()])
    assert [each is image for each, image in zip(distinct, (one, other), strict=True)] == [True, True]
    assert len(without_copies([one, one.transpose(1, 2), one.reshape(3, 6, 4)])) == 3
