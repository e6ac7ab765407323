"""Print the prompts of a class: ``python -m anovl_plugin.text brick --prompts my.yaml``.

Prints a line for each sentence, "normal" or "abnormal" before it, and then a line for each part: how many sentences it
makes, its key, and its text. Fields are separated by tabs.
"""

import argparse
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from anovl_plugin.text.parts import PAPER
from anovl_plugin.text.prompts import Prompts, fill_phrase


def sentence_lines(prompts: Prompts, class_name: str, domain: str) -> Iterator[str]:
    """Yield a line for each sentence of a class."""
    for state, sentences in prompts.ensemble(class_name, domain)._asdict().items():
        yield from (f"{state}\t{_one_line(sentence)}" for sentence in sentences)


def count_lines(prompts: Prompts, class_name: str, domain: str) -> Iterator[str]:
    """Yield a line for each state, and for each part of its sentences."""
    domain = prompts.resolve_domain(class_name, domain)
    phrases, defects = prompts.domains[domain], prompts.defect_states(class_name)
    made = {fill_phrase(template, phrase): (template, phrase) for phrase in phrases for template in prompts.templates}
    states = len(prompts.normal_states) + len(prompts.abnormal_states) + len(defects)
    of_template = Counter(template for template, _ in made.values())
    of_phrase = Counter(phrase for template, phrase in made.values() if "{phrase}" in template)
    for state, sentences in prompts.ensemble(class_name, domain)._asdict().items():
        yield f"{len(sentences)}\t{state}"
    yield from (f"{len(made)}\tnormal_states\t{_one_line(state)}" for state in prompts.normal_states)
    yield from (f"{len(made)}\tabnormal_states\t{_one_line(state)}" for state in prompts.abnormal_states)
    yield from (f"{len(made)}\tdefects\t{_one_line(defect)}" for defect in defects)
    yield from (f"{of_template[each] * states}\ttemplates\t{_one_line(each)}" for each in prompts.templates)
    yield from (f"{of_phrase[each] * states}\tdomains.{_one_line(domain)}\t{_one_line(each)}" for each in phrases)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status: 2 if an argument or a file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m anovl_plugin.text", description=__doc__.split(":")[0])
    parser.add_argument("class_name", metavar="CLASS", help="what the images show, as the dataset spells it")
    parser.add_argument("--prompts", default=PAPER, metavar="FILE", help="YAML file; default: the paper's prompts")
    parser.add_argument("--domain", default="auto", help="a domain of the prompts; default: auto, by class name")
    parser.add_argument("--count", action="store_true", help="print only how many sentences each part makes")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        prompts = Prompts.load(options.prompts)
        lines = list(count_lines(prompts, options.class_name, options.domain))
        if not options.count:
            lines = [*sentence_lines(prompts, options.class_name, options.domain), *lines]
    except (TypeError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        print("\n".join(lines), flush=True)  # noqa: T201
    except BrokenPipeError:
        # The reader, such as head, has seen enough. What is left would be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
