"""YAML and command line mean the very settings of the result, whatever is in the words."""

import shlex

import pytest
import yaml

from anovl_plugin import AnoVL, ZeroShotPostProcessor
from anovl_plugin.playground.reproduce import to_command, to_yaml
from anovl_plugin.playground.session import Session, judge
from anovl_plugin.playground.words import Words
from anovl_plugin.text.prompts import Prompts
from tests.helpers.commands import ReadingCLI

NAMES = [
    "brick", "metal nut", "01", "1e3", "0x1", "1_0", "null", "~", "true", "no", "2020-01-01", "{x: y}", "a: b", "[a]",
    "from_folder", "-x", "--help", "#c", "'q'", '"q"', "it's", "a\\b", "$HOME", "`id`", "é", "日本", "a=b", "*", "&a",
    "!x", "%",
]  # fmt: skip


@pytest.fixture(scope="module")
def session():
    return Session("anovl-demo")


def read(words, *options):
    return ReadingCLI([*words, *options], run=False).config[words[0]]


def model_of(config):
    """Return the model that a command line means, without its data."""
    arguments = vars(config.model.init_args) | {"visualizer": False}
    part = arguments.pop("post_processor")
    if not isinstance(part, bool):
        arguments["post_processor"] = ZeroShotPostProcessor(**vars(part.init_args))
    names = ("pre_processor", "evaluator", "image_score", "adaptation", "references")
    return AnoVL(**{name: value for name, value in arguments.items() if name not in names})


def sentences_of(model):
    settings = model.settings
    class_name, domain = settings["class_name"], settings["domain"]
    return model.model.prompts.ensemble(class_name, domain), model.model.prompts.defect_states(class_name)


@pytest.mark.parametrize("name", NAMES)
def test_class_names_keep_their_sentences(name):
    arguments = Words(name).arguments()
    prompts = Prompts.load(arguments.get("prompts"))
    made = prompts.ensemble(arguments["class_name"], arguments.get("domain", "auto"))
    assert made == Prompts.load().ensemble(name)


@pytest.mark.parametrize("name", NAMES)
def test_command_means_the_settings(session, photos, name):
    words = Words(
        name,
        normal_states=("# {}", '"{}"', "it's {}", "$HOME `{}` \\"),
        abnormal_states=("--{}", "- {}", "[{}]"),
        defects=("null", "1", "a: b", "é"),
    )
    judged = judge(session.score(photos / "crack.png", words, photos / "spare"), 0.31)
    prompts = Prompts.load(words.arguments()["prompts"])
    class_name = words.arguments()["class_name"]
    wanted = prompts.ensemble(class_name, judged.scored.domain), prompts.defect_states(class_name)
    assert wanted[0] == Prompts.load(
        {
            "extends": "paper",
            "normal_states": list(words.normal_states),
            "abnormal_states": list(words.abnormal_states),
            "defects": list(words.defects),
        }
    ).ensemble(name, judged.scored.domain)
    model = model_of(read(shlex.split(to_command(judged))[1:]))
    assert sentences_of(model) == wanted
    assert model.settings["few_shot_source"] == str(photos / "spare")
    assert model.post_processor.fixed_image_threshold == model.post_processor.fixed_pixel_threshold == 0.31
    assert not model.post_processor.enable_normalization


@pytest.mark.parametrize("command", ["predict", "test"])
def test_file_means_the_settings(session, photos, tmp_path, command):
    words = Words("null", "texture", normal_states=("# {}", "it's: {}"), defects=("no", "a: b"))
    judged = judge(session.score(photos / "crack.png", words), 0.31)
    path = tmp_path / "words.yaml"
    path.write_text(to_yaml(judged), encoding="utf-8")
    data = [str(photos)] if command == "predict" else ["anovl_plugin.demo.DemoSurfaces"]
    for words_of_command in (
        [command, "--config", str(path), "--data", *data],
        [command, "--model", "AnoVL", "--config", str(path), "--data", *data],
    ):
        model = model_of(read(words_of_command))
        ensemble, states = sentences_of(model)
        assert "# null" in {sentence.removeprefix("a cropped industrial photo of the ") for sentence in ensemble.normal}
        assert list(states) == ["no", "a: b"]
        assert model.post_processor.fixed_image_threshold == 0.31


def test_paper_words_at_the_default_threshold_need_few_settings(session, photos):
    judged = judge(session.score(photos / "crack.png", Words("brick")))
    config = yaml.safe_load(to_yaml(judged, "gpu"))
    assert config == {
        "model": {"class_path": "AnoVL", "init_args": {"backbone": "anovl-demo", "class_name": "brick"}},
        "trainer": {"accelerator": "gpu", "devices": 1},
    }
    assert to_command(judged) == (
        "anomalib predict --model AnoVL --model.backbone anovl-demo --model.class_name brick --trainer.accelerator cpu "
        f"--trainer.devices 1 --data {photos / 'crack.png'}"
    )


def test_file_starts_with_its_command_and_what_comes_out(session, photos):
    judged = judge(session.score(photos / "crack.png", Words("brick")))
    first, second, third, *_ = to_yaml(judged).splitlines()
    assert first == f"# Saved by the playground: score {float(judged.scored.score):.6f}, abnormal"
    assert (second, third) == ("#", f"#     anomalib predict --config words.yaml --data {photos / 'crack.png'}")
