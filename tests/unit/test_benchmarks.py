"""The tools of ``make bench``: tables, machine, failing parts, and the order of growth."""

import json
import re

import pytest
from PIL import Image

from tests.benchmarks import growth
from tests.benchmarks.__main__ import SUITES, show_plot
from tests.benchmarks.growth import KINDS, bench_growth, operations, order_of
from tests.benchmarks.machine import describe_machine, read_processor
from tests.benchmarks.measuring import Times, in_process, in_turns
from tests.benchmarks.plots import Curve, draw_growth
from tests.benchmarks.runs import run_parts
from tests.benchmarks.table import Failure, Growth, Ratio, ratio, to_markdown, write_into

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\nflags\t\t: fpu avx512_bf16 avx512_vnni\n"


def test_rows_say_whether_they_miss_their_goal():
    times = Times(1.2, 1.0, 0.05)
    assert ratio("map ÷ encoding", times, 4, "≤ 1.15").cells == (
        "map ÷ encoding",
        "≤ 1.15, missed",
        "1.20 ± 0.05 (0.3 s against 0.25 s an image)",
    )
    assert ratio("map ÷ encoding", times, 4, "≤ 1.20").cells[1] == "≤ 1.20"
    assert Ratio("speed", 0.914, "≥ 0.92").is_missed
    # As printed, it is reached.
    assert not Ratio("speed", 0.9161, "≥ 0.92").is_missed
    assert not Ratio("memory", 5000, unit="MB").is_missed
    assert Ratio("memory", 5000, unit="MB").cells == ("memory", "", "5000 MB")


def test_tables_hold_each_kind_of_row_and_failures_last():
    rows = [
        Failure("views", "RuntimeError: a | b"),
        Growth("scoring, by images", [1, 1000], [0.5, 50], [100, 2000], 1, 0.67, 0.9),
        Ratio("map ÷ encoding", 1.1),
    ]
    text = to_markdown("On a machine.", rows)
    assert text.splitlines() == [
        "On a machine.",
        "",
        "| ratio | goal | measured |",
        "| --- | --- | --- |",
        "| map ÷ encoding |  | 1.10 |",
        "",
        "| cost | from … to | expected order | measured | last step | seconds | memory, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| scoring, by images | 1 … 1,000 | 1.00 | 0.67 | 0.90 | 0.5 … 50 | 100 … 2,000 |",
        "",
        "| part that failed | reason |",
        "| --- | --- |",
        "| views | RuntimeError: a \\| b |",
    ]


def test_a_page_keeps_all_but_what_is_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\n<!-- begin bench -->\nold\n<!-- end bench -->\n\nAfterwards.\n", encoding="utf-8")
    for text in ("new\n", "newer\n"):
        write_into(page, "bench", text)
    assert page.read_text() == "# Speed\n\n<!-- begin bench -->\n\nnewer\n\n<!-- end bench -->\n\nAfterwards.\n"


def test_a_page_that_does_not_exist_is_made(tmp_path):
    for text in ("new\n", "newer\n"):
        write_into(tmp_path / "page.md", "bench", text)
    assert (tmp_path / "page.md").read_text() == "<!-- begin bench -->\n\nnewer\n\n<!-- end bench -->\n"


def test_a_page_without_marks_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n")
    with pytest.raises(ValueError, match=re.escape("page.md has no <!-- begin bench --> and <!-- end bench -->")):
        write_into(page, "bench", "new")
    assert page.read_text() == "# Speed\n"


def test_a_part_that_fails_costs_no_other_its_results(capsys):
    def fine():
        yield Ratio("first", 1)

    def broken():
        yield Ratio("second", 2)
        msg = "no memory\nleft"
        raise RuntimeError(msg)

    kept = []
    rows = run_parts({"broken": broken, "fine": fine}, lambda rows: kept.append(len(rows)))
    assert rows == [Ratio("second", 2), Failure("broken", "RuntimeError: no memory"), Ratio("first", 1)]
    assert kept == [1, 2, 3]
    printed = capsys.readouterr()
    assert "first" in printed.out
    assert "Traceback" in printed.err


def test_the_processor_is_read_from_what_linux_says():
    assert read_processor(X86) == ("AMD EPYC, family 26, model 2", {"fpu", "avx512_bf16", "avx512_vnni"})
    assert read_processor("processor\t: 0\nFeatures\t: fp bf16\n") == ("unknown processor", {"fp", "bf16"})


def test_the_machine_is_described_with_the_date():
    assert re.match(r"Measured on \d{4}-\d\d-\d\d in 7 minutes: .+, torch \d", describe_machine(7.2))


def test_turns_alternate():
    called = []
    times = in_turns(lambda: called.append("a"), lambda: called.append("b"), 2)
    assert called == ["a", "b"] * 3
    assert times.first > 0


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"nonsense images ended with status 1: .*No module named tests\.nonsense"):
        in_process("tests.nonsense", "images")


@pytest.mark.parametrize("order", [0, 1, 1.5])
def test_the_order_of_growth_is_the_exponent(order):
    values = [1, 2, 5, 100]
    assert order_of(values, [3 * value**order for value in values]) == pytest.approx(order)


def test_attention_makes_large_images_dear():
    # Half of the operations where there are 13 d / 4 patches.
    patches = 13 * 896 / 4
    assert operations(patches * 16**2) == pytest.approx(2 * 13 * patches * 896**2)
    assert operations(960**2) / operations(240**2) == pytest.approx(33.2, abs=0.1)


def test_growth_measures_the_others_where_one_fails(monkeypatch, tmp_path):
    def measured(_: str, name: str, __: str) -> dict:
        if name == "memory":
            msg = "no room"
            raise RuntimeError(msg)
        points = KINDS[name].points
        return {"seconds": [2.0 * point for point in points], "megabytes": [100.0] * len(points)}

    monkeypatch.setattr(growth, "in_process", measured)
    rows = bench_growth("weights", tmp_path / "images" / "growth.png", ["memory", "images", "classes"])
    images, classes = next(rows), next(rows)
    assert (images.expected, images.measured, images.last) == pytest.approx((1, 1, 1))
    assert (classes.expected, classes.measured) == pytest.approx((0, 1))
    with pytest.raises(RuntimeError, match="memory: no room"):
        next(rows)
    assert Image.open(tmp_path / "images" / "growth.png").width > 500


def test_plots_have_a_panel_for_each_subject(tmp_path):
    curves = [Curve(f"subject {index}", "cost", [1, 10], [1, 9], [1, 10]) for index in range(3)]
    for count in (1, 2, 3):
        draw_growth(curves[:count], tmp_path / f"{count}.png")
    one, two, three = (Image.open(tmp_path / f"{count}.png").height for count in (1, 2, 3))
    assert one == two < three


def test_a_page_shows_the_plot_that_was_drawn(tmp_path):
    plot = tmp_path / "images" / "growth.png"
    assert show_plot(plot, tmp_path / "page.md") == ""
    draw_growth([Curve("images", "scoring", [1, 10], [1, 9], [1, 10])], plot)
    assert show_plot(plot, tmp_path / "page.md").endswith("(images/growth.png)\n")
    assert show_plot(plot, None) == ""


def test_what_growth_measures_is_valid_json():
    kind = growth.Kind("numbers", "counting", lambda _: lambda count: lambda: sum(range(count)), (1, 10), 1)
    found = json.loads(json.dumps(growth.measure(kind, "")))
    assert [len(found[name]) for name in ("seconds", "megabytes")] == [2, 2]


def test_the_suites_have_what_the_targets_promise():
    assert {"map", "views", "command", "memory"} <= SUITES["bench"].keys()
    assert {"half", "compile", "throughput", "peak", "command", "adaptation"} <= SUITES["bench-gpu"].keys()
