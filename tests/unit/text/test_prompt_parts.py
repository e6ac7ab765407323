"""Files and mappings of prompts: what they may hold, how they extend each other, and what is said about mistakes."""

import ast
import copy
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from anovl_plugin.text import parts
from anovl_plugin.text.prompts import Prompts, prompt_ensemble

PAGE = Path(__file__).parents[3] / "docs" / "prompts.md"
PAPER_FILE = Path(parts.__file__).with_name("paper.yaml")
OWN = {
    "normal_states": ["good {}"],
    "abnormal_states": ["bad {}", "{} with rust"],
    "templates": ["{article} {phrase} of a {}", "just the {}"],
    "domains": {"weld": ["image", "x-ray picture"], "cast": ["photo"]},
    "auto": {"*": "cast", "seam": "weld"},
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes files into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write_file


# What a file makes.


def test_papers_prompts_are_the_default(write):
    paper = Prompts.load()
    assert paper is Prompts.load("paper") is Prompts.load(paper)
    assert paper == Prompts.load(PAPER_FILE) == Prompts.load({"extends": "paper"})
    assert paper == Prompts.load(write("my.yaml", "extends: paper"))
    assert paper.ensemble("leather") == prompt_ensemble("leather")


def test_a_file_of_its_own_makes_its_own_sentences(write):
    prompts = Prompts.load(write("my.yaml", yaml.safe_dump(OWN)))
    assert prompts == Prompts.load(OWN) == Prompts.load(OmegaConf.create(OWN)) == Prompts(**OWN)
    normal, abnormal = prompts.ensemble("seam")
    # A template without a phrase is the same for every phrase, and so there once.
    assert normal == ["an image of a good seam", "just the good seam", "a x-ray picture of a good seam"]
    assert abnormal == [
        "an image of a bad seam",
        "an image of a seam with rust",
        "just the bad seam",
        "just the seam with rust",
        "a x-ray picture of a bad seam",
        "a x-ray picture of a seam with rust",
    ]
    assert prompts.ensemble("wheel").normal == ["a photo of a good wheel", "just the good wheel"]
    assert prompts.ensemble("wheel", "weld").normal[0] == "an image of a good wheel"


def test_domains_are_those_of_the_file():
    with pytest.raises(ValueError, match=r"^domain is 'object', but must be one of 'auto', 'weld', 'cast'$"):
        Prompts.load(OWN).ensemble("seam", "object")


def test_a_single_domain_is_for_all_classes():
    prompts = Prompts.load({"extends": "paper", "domains": {"weld": ["x-ray"]}})
    assert prompts.auto == {"*": "weld"}
    assert len(prompts.ensemble("leather").normal) == 22 * 7


def test_any_language_is_written_as_it_is(write):
    text = """
    normal_states: ['正常な{}']
    abnormal_states: ["{} mit Riß"]
    templates: ["{phrase}: {}"]
    domains: {工業: [写真]}
    nouns: {"01": подшипник}
    """
    prompts = Prompts.load(write("my.yaml", text))
    assert prompts.ensemble("01") == (["写真: 正常なподшипник"], ["写真: подшипник mit Riß"])
    assert prompts == Prompts.load(write("bom.yaml", b"\xef\xbb\xbf" + text.encode()))


def test_nouns_are_what_sentences_call_classes():
    prompts = Prompts.load({**OWN, "nouns": {"01": "bearing", "*": "part", "x": "seam"}})
    assert prompts.ensemble("01").normal[1] == "just the good bearing"
    assert prompts.ensemble("02").normal[1] == "just the good part"
    # A noun finds the domain of a class that is not listed itself.
    assert prompts.resolve_domain("x") == "weld"


def test_braces_in_nouns_stay():
    prompts = Prompts.load({**OWN, "nouns": {"01": "{} {phrase}\n%s"}})
    assert prompts.ensemble("01").normal[1] == "just the good {} {phrase}\n%s"


@pytest.mark.parametrize("defects", [["scratch", "missing part"], {"*": ["scratch", "missing part"]}])
def test_defects_are_abnormal_states_of_all_classes(defects):
    prompts = Prompts.load({"extends": "paper", "defects": defects})
    paper, ensemble = prompt_ensemble("nut"), prompts.ensemble("nut")
    assert ensemble.normal == paper.normal
    assert ensemble.abnormal[:9] == [
        *paper.abnormal[:7],
        "a cropped industrial photo of the nut with scratch",
        "a cropped industrial photo of the nut with missing part",
    ]
    assert len(ensemble.abnormal) == 66 * 9
    sentences = prompts.defect_sentences("nut")
    assert list(sentences) == ["scratch", "missing part"]
    assert {*ensemble.abnormal} == {*paper.abnormal, *sentences["scratch"], *sentences["missing part"]}
    assert [len(each) for each in sentences.values()] == [66, 66]


def test_defects_of_one_class_are_for_it_alone():
    prompts = Prompts.load({**OWN, "defects": {"*": ["crack"], "seam": ["pore"]}, "nouns": {"07": "seam"}})
    assert list(prompts.defect_sentences("seam")) == list(prompts.defect_sentences("07")) == ["crack", "pore"]
    assert list(prompts.defect_sentences("nut")) == ["crack"]
    assert Prompts.load().defect_sentences("nut") == {}


def test_defect_template_words_the_defects():
    prompts = Prompts.load({**OWN, "defects": ["crack"], "defect_template": "{} that has a {defect}"})
    assert "just the nut that has a crack" in prompts.ensemble("nut").abnormal
    assert prompts.defect_sentences("nut")["crack"][1] == "just the nut that has a crack"


# Extending.


def test_keys_replace_and_add_extends(write):
    write("base/site.yaml", yaml.safe_dump({**OWN, "nouns": {"a": "apple", "b": "bolt"}, "defects": ["crack"]}))
    name = write(
        "line.yaml",
        """
        extends: base/site.yaml
        normal_states: ["fine {}"]
        add:
          abnormal_states: ["burnt {}"]
          domains: {weld: [scan], tube: [scan]}
          auto: {pipe: tube}
          nouns: {b: bearing}
          defects: {"*": [dent], nut: [burr]}
        """,
    )
    prompts = Prompts.load(name)
    assert prompts.normal_states == ("fine {}",)
    assert prompts.abnormal_states == ("bad {}", "{} with rust", "burnt {}")
    assert prompts.domains == {"weld": ("image", "x-ray picture", "scan"), "cast": ("photo",), "tube": ("scan",)}
    assert prompts.auto == {"*": "cast", "seam": "weld", "pipe": "tube"}
    assert prompts.nouns == {"a": "apple", "b": "bearing"}
    assert prompts.defects == {"*": ("crack", "dent"), "nut": ("burr",)}
    assert prompts.templates == tuple(OWN["templates"])


def test_a_chain_is_relative_to_each_file(write):
    write("a/one.yaml", "extends: paper\ndefects: [dent]")
    write("a/two.yaml", "extends: one.yaml\nadd: {defects: [burr]}")
    assert Prompts.load(write("three.yaml", "extends: a/two.yaml")).defects == {"*": ("dent", "burr")}
    assert Prompts.load({"extends": "a/two.yaml"}).defects == {"*": ("dent", "burr")}


def test_files_in_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "site.yaml").write_text("extends: paper\ndefects: [dent]")
    for prompts in ("~/site.yaml", Path("~/site.yaml"), write("sub/own.yaml", "extends: ~/site.yaml")):
        assert Prompts.load(prompts).defects == {"*": ("dent",)}


def test_the_papers_prompts_are_not_changed_by_what_extends_them():
    Prompts.load({"extends": "paper", "add": {"nouns": {"01": "nut"}, "domains": {"object": ["scan"]}}})
    assert Prompts.load({"extends": "paper"}) == Prompts.load()


def test_a_file_may_be_extended_twice_but_not_in_a_circle(write):
    write("one.yaml", "extends: two.yaml")
    write("two.yaml", "\nextends: ./one.yaml")
    message = r"^two\.yaml, line 2: extends is './one\.yaml', but that file extends this one; remove 'extends' from one"
    with pytest.raises(ValueError, match=message):
        Prompts.load("one.yaml")
    with pytest.raises(ValueError, match=r"^me\.yaml, line 1: extends is 'me\.yaml', but that file extends this one"):
        Prompts.load(write("me.yaml", "extends: me.yaml"))


# Documentation.


def test_the_page_shows_a_file_that_makes_what_its_example_makes(write):
    page = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (call,) = re.findall(r"Prompts\.load\((.*?)\)\n", page.replace("... ", ""), re.DOTALL)
    assert Prompts.load(write("my.yaml", block)) == Prompts.load(ast.literal_eval(call))


def test_the_page_explains_every_key():
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    with pytest.raises(ValueError, match=f"use one of {', '.join(rows)}$"):
        Prompts.load({"key": 1})


# Plain data.


def test_round_trip_through_plain_data(tmp_path):
    prompts = Prompts.load({**OWN, "defects": ["crack"], "nouns": {"01": "nut"}, "defect_template": "{}: {defect}"})
    data = prompts.to_dict()
    assert data == {
        **OWN,
        "defects": {"*": ["crack"]},
        "nouns": {"01": "nut"},
        "defect_template": "{}: {defect}",
    }
    torch.save(data, tmp_path / "data.pt")
    again = Prompts.load(torch.load(tmp_path / "data.pt", weights_only=True))
    assert again == prompts
    assert hash(again) == hash(prompts)
    assert again != replace(prompts, defects={})
    assert copy.deepcopy(prompts) == prompts == pickle.loads(pickle.dumps(prompts))  # noqa: S301


def test_papers_prompts_are_none_as_plain_data():
    assert Prompts.load({"extends": "paper"}).to_dict() is None
    assert Prompts.load(None).to_dict() is None


def test_prompts_in_python_are_checked():
    changed = replace(Prompts.load(), defects={"nut": ["burr"]})
    assert changed == Prompts.load({"extends": "paper", "defects": {"nut": ["burr"]}})
    with pytest.raises(ValueError, match=r"^prompts: templates has 'a photo', which lacks \{\}"):
        replace(changed, templates=["a photo"])


# Mistakes.

MISTAKES = {
    "no placeholder": (
        "extends: paper\ntemplates:\n  - a {phrase} of a {}\n  - a photo\n",
        r"my\.yaml, line 4: templates has 'a photo', which lacks \{\}; write \{\} where the class name goes",
    ),
    "no defect": (
        "extends: paper\ndefect_template: broken {}",
        r"my\.yaml, line 2: defect_template has 'broken \{\}', which lacks \{defect\}; write \{defect\} where the",
    ),
    "unknown placeholder": (
        'extends: paper\nabnormal_states: ["{noun} with {}"]',
        r"my\.yaml, line 2: abnormal_states has '\{noun\} with \{\}', where '\{noun\}' has no meaning; use only \{\}",
    ),
    "lone brace": (
        'extends: paper\nadd:\n  templates:\n  - "{ {}"',
        r"my\.yaml, line 4: add\.templates has '\{ \{\}', where '\{' has no meaning; use only \{article\}, ",
    ),
    "braces in a defect": (
        "extends: paper\ndefects: ['{} with dent']",
        r"my\.yaml, line 2: defects has '\{\} with dent', where '\{\}' has no meaning; remove the braces",
    ),
    "unknown key": (
        "extends: paper\nstates: [good]",
        r"my\.yaml, line 2: states is not a key that can be set here; use one of extends, add, normal_states, ",
    ),
    "unknown key to add": (
        "extends: paper\nadd:\n  defect_template: x",
        r"my\.yaml, line 3: add\.defect_template is not a key that can be set here; use one of normal_states, ",
    ),
    "empty list": (
        "extends: paper\n\ndomains:\n  weld: []",
        r"my\.yaml, line 4: domains\.weld is an empty list; write at least one entry",
    ),
    "empty mapping": ("extends: paper\ndefects: {}", r"my\.yaml, line 2: defects is empty; write at least one entry"),
    "no value": ("extends: paper\ndefects:\n", r"my\.yaml, line 2: defects has no value; write one, or remove the key"),
    "twice": (
        "extends: paper\ndefects:\n - dent\n - crack\n - dent",
        r"my\.yaml, line 5: defects has 'dent' twice; remove one",
    ),
    "added twice": (
        "extends: paper\nadd:\n abnormal_states:\n - burnt {}\n - damaged {}",
        r"my\.yaml, line 5: add\.abnormal_states has 'damaged \{\}', which is there already; remove it",
    ),
    "key twice": (
        "extends: paper\nnouns: {a: b}\nnouns: {c: d}",
        r"my\.yaml, line 3: nouns is there twice; remove one",
    ),
    "state of both": (
        'extends: paper\nabnormal_states: ["normal {}"]',
        r"my\.yaml, line 2: abnormal_states has 'normal \{\}', which normal_states has, too; remove one",
    ),
    "defect that is a state": (
        "extends: paper\nadd: {defects: [flaw]}",
        r"my\.yaml, line 2: add\.defects has 'flaw', but abnormal_states has '\{\} with flaw' already; remove one",
    ),
    "defect of all and one": (
        'extends: paper\ndefects:\n  "*": [dent]\n  nut: [dent]',
        r"my\.yaml, line 4: defects\.nut has 'dent', which all classes have already; remove one",
    ),
    "number": (
        "extends: paper\ndefects:\n  - crack\n  - 5",
        r"my\.yaml, line 4: defects has '5', which YAML does not read as text; put it in quotes",
    ),
    "number as a key": (
        "extends: paper\nnouns:\n  a: b\n  01: bearing",
        r"my\.yaml, line 4: nouns\.'01' has '01', which YAML does not read as text; put it in quotes",
    ),
    "truth": (
        "extends: paper\nnouns: {a: no}",
        r"my\.yaml, line 2: nouns\.a has 'no', which YAML does not read as text",
    ),
    "list for text": (
        "extends: paper\ndefect_template: [x]",
        r"my\.yaml, line 2: defect_template has \['x'\], but must have text",
    ),
    "text for list": (
        "extends: paper\nabnormal_states: bad {}",
        r"my\.yaml, line 2: abnormal_states is 'bad \{\}', but must be a list",
    ),
    "text for mapping": (
        "extends: paper\ndomains: weld",
        r"my\.yaml, line 2: domains is 'weld', but must be a mapping from domain to list of phrases",
    ),
    "text for defects": (
        "extends: paper\ndefects: dent",
        r"my\.yaml, line 2: defects is 'dent', but must be a list of defects, or a mapping from class to such a list",
    ),
    "list to add": ("extends: paper\nadd: [x]", r"my\.yaml, line 2: add is \['x'\], but must be a mapping"),
    "list": ("- extends: paper", r"my\.yaml: is \[\{'extends': 'paper'\}\], but must be a mapping with keys such as"),
    "blank": ("extends: paper\ndefects: [' ']", r"my\.yaml, line 2: defects has ' ', which is blank; write a text"),
    "long": (
        f"extends: paper\ndefects: [{'x' * 1001}]",
        r"my\.yaml, line 2: defects has a text of 1,001 characters; write at most 1,000",
    ),
    "surrogate": (
        'extends: paper\ndefects: ["\\ud800"]',
        r"my\.yaml, line 2: defects has '\\ud800', which is not valid Unicode; use letters that can be encoded",
    ),
    "missing": (
        "nouns: {a: b}",
        r"my\.yaml: normal_states is missing; write it, or start from the paper's prompts with 'extends: paper'",
    ),
    "no domain for most": (
        "extends: paper\ndomains:\n  a: [x]\n  b: [y]",
        r"my\.yaml: auto has no entry for all other classes; add one, such as \"\*\": 'a'",
    ),
    "unknown domain": (
        "extends: paper\nadd:\n  auto:\n    nut: metal",
        r"my\.yaml, line 4: add\.auto\.nut has 'metal', which is not a domain; use one of 'object', 'texture'",
    ),
    "domain auto": (
        "extends: paper\nadd: {domains: {auto: [x]}}",
        r"my\.yaml, line 2: add\.domains\.auto is not a possible name, because 'auto' chooses a domain; use another",
    ),
    "base that is missing": (
        "extends: papers",
        r"my\.yaml, line 1: extends is 'papers', but there is no such file; name a YAML file or 'paper'",
    ),
    "syntax": (
        'extends: paper\nabnormal_states:\n  - {} with rust\n  - "{} with dent"',
        r"my\.yaml, line 3: invalid YAML: .*; put texts with \{\} in quotes, and indent evenly",
    ),
    "control character": ("extends: paper\ndefects: [\x01]", r"my\.yaml: invalid YAML: special characters are not "),
    "no character": (
        'extends: paper\ndefects: ["\\UFFFFFFFF"]',
        r"my\.yaml: invalid YAML: too many brackets, or an escape sequence that is no character; remove them",
    ),
    "brackets": ("[" * 5000, r"my\.yaml: invalid YAML: too many brackets, or an escape sequence"),
    "deep": (f"defects: {'[' * 11}x{']' * 11}", r"my\.yaml, line 1: defects is more than 10 levels deep"),
    "tag": ("extends: !!python/name:os.system", r"my\.yaml, line 1: extends has the tag 'tag:yaml.org,2002:python/"),
    "tag of a list": (
        "extends: paper\ndefects: !mine [x]",
        r"my\.yaml, line 2: defects has the tag '!mine'; remove the",
    ),
    "key that is a list": ("? [a]\n: b", r"my\.yaml, line 1: has a list or a mapping as a key; write text instead"),
    "several documents": (
        "extends: paper\n---\nextends: paper",
        r"my\.yaml, line 2: invalid YAML: but found another doc",
    ),
    "empty": ("# nothing", r"my\.yaml: is empty; write at least 'extends: paper'"),
    "latin-1": ("extends: paper # é".encode("latin-1"), r"my\.yaml: is not text in UTF-8; save it as UTF-8"),
    "large": ("#" * 1_000_001, r"my\.yaml: has more than 1,000,000 bytes; write fewer or shorter texts"),
    "sentences": (
        f"extends: paper\ndomains: {{a: [{', '.join(f'p{number}' for number in range(400))}]}}",
        r"my\.yaml, line 2: domains\.a makes 123,200 sentences, but at most 100,000 are possible; write fewer phrases",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_file_line_and_key(text, message, write):
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        Prompts.load(write("my.yaml", text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_aliases_of_aliases_do_not_fill_the_memory(write):
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{'b' * (n + 1)}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9)]
    with pytest.raises(ValueError, match=r"^bomb\.yaml, line \d+: b+ is more than 10 levels deep, or value 100,000"):
        Prompts.load(write("bomb.yaml", "\n".join(lines)))
    with pytest.raises(ValueError, match=r"^loop\.yaml, line 1: a is more than 10 levels deep"):
        Prompts.load(write("loop.yaml", "a: &a [*a]"))


def test_a_mistake_in_the_base_is_named_there(write):
    write("base.yaml", "extends: paper\n\ndefects: []")
    with pytest.raises(ValueError, match=r"^base\.yaml, line 3: defects is an empty list"):
        Prompts.load(write("my.yaml", "extends: base.yaml"))


def test_a_mistake_in_a_mapping_has_no_line():
    with pytest.raises(TypeError, match=r"^prompts: defects\.nut has 5, but must have text$"):
        Prompts.load({"extends": "paper", "defects": {"nut": [5]}})
    with pytest.raises(TypeError, match=r"^prompts: nouns has 1, but must have text$"):
        Prompts.load({"extends": "paper", "nouns": {1: "nut"}})
    with pytest.raises(ValueError, match=r"^prompts: '3' is not a key that can be set here; use one of extends, add"):
        Prompts.load({3: "x"})


@pytest.mark.parametrize("path", ["none.yaml", "", ".", "a\0b", "x" * 5000, "two\nlines", "caf\udce9"])
def test_a_file_that_is_not_there_is_an_error(path):
    message = r"^prompts is '.*, but there is no such file; pass a YAML file, 'paper' or a mapping$"
    for given in (path, Path(path)):
        with pytest.raises(ValueError, match=message) as caught:
            Prompts.load(given)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [5, True, 1.5, ["paper"], b"paper", object()])
def test_prompts_of_another_type_are_an_error(value):
    with pytest.raises(TypeError, match=r"^prompts is .*, but must be a YAML file, 'paper' or a mapping with the keys"):
        Prompts.load(value)


def test_an_unreadable_file_is_an_error(write, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    name = write("my.yaml", "extends: paper")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"^my\.yaml: cannot be read \(Permission denied\); pass a file that can be$"):
        Prompts.load(name)
