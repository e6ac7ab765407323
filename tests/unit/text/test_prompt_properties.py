"""Whatever prompts may hold goes through plain data and YAML; whatever they may not is an error of one line."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anovl_plugin.text.prompts import Prompts

PLAIN = st.text(min_size=1, max_size=20).filter(str.strip)
WORDS = PLAIN.map(lambda text: text.replace("{", "(").replace("}", ")"))
# Anything that a YAML file or JSON can hold.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("{}") | st.just("paper"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def put(placeholder, texts=WORDS):
    return st.tuples(texts, st.sampled_from([f"{placeholder} {{}}", f"{{}} {placeholder}"])).map(
        lambda pair: pair[1].replace(placeholder, pair[0])
    )


def lists(texts, **options):
    return st.lists(texts, min_size=1, max_size=4, unique=True, **options)


@st.composite
def mappings(draw):
    """Draw the mapping of a file that is complete in itself."""
    states = draw(st.lists(put("T"), min_size=2, max_size=6, unique=True))
    cut = draw(st.integers(1, len(states) - 1))
    domains = draw(st.dictionaries(WORDS.filter(lambda name: name != "auto"), lists(WORDS), min_size=1, max_size=3))
    data = {
        "normal_states": states[:cut],
        "abnormal_states": states[cut:],
        "templates": draw(lists(put("T") | put("T").map(lambda text: f"{{article}} {{phrase}} {text}"))),
        "domains": domains,
        "auto": draw(st.dictionaries(PLAIN, st.sampled_from([*domains]), max_size=3)) | {"*": next(iter(domains))},
    }
    if draw(st.booleans()):
        data["nouns"] = draw(st.dictionaries(PLAIN, PLAIN, max_size=3))
    if draw(st.booleans()):
        # No state above holds this letter twice in a row.
        data["defects"] = draw(
            lists(WORDS) | st.dictionaries(PLAIN.filter(lambda name: name != "*"), lists(WORDS), min_size=1, max_size=3)
        )
        data["defect_template"] = "{} §§§ {defect}"
    return data


def places(data):
    """Return each container of nested data with each of its keys or indices."""
    pairs = enumerate(data) if isinstance(data, list) else data.items() if isinstance(data, dict) else ()
    return [place for key, value in pairs for place in ((data, key), *places(value))]


@given(mappings())
def test_any_valid_structure_survives_plain_data_and_yaml(tmp_path_factory, data):
    prompts = Prompts.load(data)
    assert Prompts.load(prompts.to_dict()) == prompts
    assert hash(Prompts.load(prompts.to_dict())) == hash(prompts)
    path = tmp_path_factory.mktemp("prompts") / "my.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert Prompts.load(path) == prompts


@given(mappings(), PLAIN)
def test_any_ensemble_has_as_many_sentences_as_its_parts_make(data, class_name):
    prompts = Prompts.load(data)
    for domain in ("auto", *data["domains"]):
        normal, abnormal = prompts.ensemble(class_name, domain)
        templates = prompts.templates_of(prompts.resolve_domain(class_name, domain))
        assert len(normal) == len(templates) * len(data["normal_states"])
        of_defects = prompts.defect_sentences(class_name, domain).values()
        assert len(abnormal) == len(templates) * (len(data["abnormal_states"]) + len(of_defects))
        assert all(prompts.noun(class_name) in sentence for sentence in (*normal, *abnormal))
        assert {sentence for sentences in of_defects for sentence in sentences} <= {*abnormal}


def check_one_line(prompts):
    """Load prompts and check the message if they are a mistake; any other exception is let through."""
    message = "fine"
    try:
        Prompts.load(prompts)
    except (TypeError, ValueError) as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    assert len(message) < 700


@given(mappings(), st.data())
def test_any_mutation_is_fine_or_an_error_of_one_line(tmp_path_factory, data, draw):
    data = copy.deepcopy(data)
    container, key = draw.draw(st.sampled_from(places(data)))
    change = draw.draw(st.sampled_from(["replace", "remove", "repeat", "brace", "insert"]))
    if change == "replace":
        container[key] = draw.draw(ANYTHING)
    elif change == "remove":
        del container[key]
    elif change == "repeat" and isinstance(container, list):
        container.append(container[key])
    elif change == "brace":
        container[key] = f"{{x}} {container[key]}"
    elif isinstance(container, dict):
        container[draw.draw(st.text(max_size=5) | st.integers() | st.none())] = draw.draw(ANYTHING)
    check_one_line(data)
    path = tmp_path_factory.mktemp("prompts") / "my.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    check_one_line(path)


@given(mappings(), st.sampled_from(["normal_states", "abnormal_states", "templates", "domains"]))
def test_a_part_that_is_missing_empty_or_of_another_type_is_an_error(data, part):
    for change, kind, message in (
        (lambda: data.pop(part), ValueError, f"^prompts: {part} is missing"),
        (lambda: data.update({part: [] if part != "domains" else {}}), ValueError, f"^prompts: {part} is (an )?empty"),
        (lambda: data.update({part: 5}), TypeError, f"^prompts: {part} is 5, but must be a (list|mapping)"),
    ):
        change()
        with pytest.raises(kind, match=message):
            Prompts.load(data)


@given(st.binary(max_size=200) | st.text(alphabet="[]{}-:&*!?|>%@`'\"#\\, \nabU08", max_size=60).map(str.encode))
def test_any_file_is_fine_or_an_error_of_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("prompts") / "my.yaml"
    path.write_bytes(content)
    check_one_line(path)


@given(ANYTHING)
def test_anything_is_fine_or_an_error_of_one_line(value):
    check_one_line(value)
