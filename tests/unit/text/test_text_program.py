"""``python -m anovl_plugin.text``: lines that grep and head can read, whatever the locale."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from anovl_plugin.text.__main__ import main
from anovl_plugin.text.prompts import Prompts, prompt_ensemble

OWN = """
extends: paper
templates: ["a photo of a {}", "{phrase} of a {}"]
nouns: {"01": Wälzlager}
defects: {"*": [crack], "01": [pitting]}
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(OWN, encoding="utf-8")
    return str(path)


def fields(out):
    return [line.split("\t") for line in out.splitlines()]


def test_sentences_and_counts_are_printed(capsys):
    assert main(["leather", "--domain", "object"]) == 0
    lines = fields(capsys.readouterr().out)
    normal, abnormal = prompt_ensemble("leather", "object")
    assert lines[:924] == [*(["normal", each] for each in normal), *(["abnormal", each] for each in abnormal)]
    assert lines[924:926] == [["462", "normal"], ["462", "abnormal"]]
    assert len(lines) == 924 + 2 + 14 + 22 + 3


def test_counts_are_those_of_the_sentences(own, capsys):
    assert main(["01", "--prompts", own, "--count"]) == 0
    lines = fields(capsys.readouterr().out)
    prompts = Prompts.load(own)
    sentences = [each for state in prompts.ensemble("01") for each in state]
    found = {tuple(rest): int(count) for count, *rest in lines}
    assert found["normal",] + found["abnormal",] == len(sentences)
    for defect in ("crack", "pitting"):
        assert found["defects", defect] == Counter(defect in each for each in sentences)[True]
    assert found["templates", "a photo of a {}"] == Counter(each.startswith("a photo") for each in sentences)[True]
    assert found["domains.object", "industrial image"] == sum("industrial image" in each for each in sentences)
    assert found["abnormal_states", "damaged {}"] == sum("damaged" in each and "with" not in each for each in sentences)


def test_newlines_do_not_break_lines(capsys):
    main(["two\nlines"])
    assert len(fields(capsys.readouterr().out)) == 924 + 41


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nut", "--prompts", "none.yaml"], "prompts is 'none.yaml', but there is no such file"),
        (["nut", "--domain", "metal"], "domain is 'metal', but must be one of 'auto', 'object', 'texture'"),
        ([" "], "class_name is ' ', but must name what the images show"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"python -m anovl_plugin.text: error: {message}")
    assert len(err.splitlines()) == 1


def test_output_is_utf_8_whatever_the_locale(own):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, "-m", "anovl_plugin.text", "01", "--prompts", own]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert "normal\ta photo of a normal Wälzlager" in done.stdout.decode("utf-8").splitlines()
    assert not done.stderr


def test_head_ends_it_quietly():
    # More than a pipe holds, and a reader that closes it at once.
    command = [sys.executable, "-m", "anovl_plugin.text", "x" * 1000]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(6) == b"normal"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
