"""The gallery: what it reads of a run, what its page says, and what it says of runs that it cannot show."""

import base64
import io
import json
import re
from html import unescape

import numpy as np
import pytest
from PIL import Image

from anovl_plugin.report.__main__ import main
from anovl_plugin.report.gallery import write_gallery
from anovl_plugin.report.gallery.histogram import BINS, HEIGHT, WIDTH, draw_histogram
from anovl_plugin.report.gallery.items import Item, Region, first_shown
from anovl_plugin.report.gallery.page import PAGE, describe_item
from anovl_plugin.report.gallery.run_results import Found, FoundImages, read_run, read_table, short_names
from anovl_plugin.report.gallery.thumbnails import decode_runs, draw_item, outline_shape
from anovl_plugin.report.results import ReportError
from tests.helpers.coco_runs import decode_runs as decode_slowly
from tests.helpers.gallery_runs import SIZE, mixed_test, predict, write_image, write_run

HOSTILE = "a<b>&\"'</script><script>alert(1)</script>é\u2028日本.png"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path, mixed_test())


def text_of(run, **options):
    return write_gallery(run, **options).path.read_text(encoding="utf-8")


def rows_of(page):
    return json.loads(re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)[1])


def images_of(page, letter):
    found = re.findall(rf'<script type="text/plain" id="{letter}(\d+)">(.*?)</script>', page)
    return {int(number): Image.open(io.BytesIO(base64.b64decode(text))) for number, text in found}


def counts_of(page):
    """Return the table of counts: the texts of each row."""
    body = re.search(r'<table class="counts">.*?</table>', page, re.DOTALL)[0]
    lines = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    hidden = re.compile(r'<span class="hidden">.*?</span>')
    return [
        [
            re.sub(r"<[^>]+>", "", hidden.sub("", cell)).strip()
            for cell in re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)
        ]
        for line in lines
    ]


def cells_in(line):
    return re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)


def make_item(score=None, label="", truth="", threshold=0.5):
    return Item("a.png", "a.png", "nut", score, threshold, label, truth)


@pytest.mark.parametrize(
    ("label", "truth", "outcome"),
    [
        ("abnormal", "abnormal", "found"),
        ("normal", "abnormal", "missed"),
        ("abnormal", "normal", "false alarm"),
        ("normal", "normal", "passed"),
        ("abnormal", "", "abnormal"),
        ("normal", "", "normal"),
        ("unreadable", "", "unreadable"),
        ("unreadable", "normal", "unreadable"),
        ("", "", "no verdict"),
        ("", "normal", "no verdict"),
    ],
)
def test_outcome_is_the_verdict_against_the_ground_truth(label, truth, outcome):
    item = make_item(0.5, label, truth)
    assert (item.outcome, item.is_mistake) == (outcome, outcome in {"missed", "false alarm"})


def test_mistakes_come_first_and_the_worst_of_them_leads(run):
    names = [item.name for item in sorted(read_run(run), key=first_shown)]
    # Distances 0.5, 0.2 and 0.05; then by score.
    assert names == [
        "bolt/bent/1.png", "nut/good/2.png", "nut/bent/3.png",
        "nut/bent/2.png", "bolt/bent/0.png", "bolt/good/0.png", "nut/good/10.png", "nut/bent/cut.png",
    ]  # fmt: skip


def test_scores_are_told_apart_from_the_threshold():
    near, far = make_item(0.50004), make_item(0.7)
    assert (near.score_text, near.threshold_text) == ("0.500040", "0.500000")
    assert (far.score_text, far.threshold_text) == ("0.700", "0.500")
    assert make_item().score_text == make_item(0.5, threshold=None).threshold_text == ""


def test_run_is_read_with_regions_and_pictures(run):
    items = {item.name: item for item in read_run(run)}
    item = items["nut/bent/2.png"]
    assert [(region.name, region.area, region.box) for region in item.regions] == [
        ("scratch", 40, (4, 2, 10, 4)),
        ("dent", 40, (4, 8, 10, 4)),
    ]
    assert (item.size, item.peak, item.milliseconds) == (SIZE, (20, 12), "7.5")
    assert item.picture == run / "images" / "nut/bent/2.png"
    assert items["nut/bent/cut.png"].error == "nut/bent/cut.png cannot be read (it is cut off)"
    assert items["nut/bent/cut.png"].picture is None


def test_masks_are_decoded_as_the_definition_says(run):
    for item in read_run(run):
        for region in item.regions:
            expected = decode_slowly({"size": item.size, "counts": region.runs})
            np.testing.assert_array_equal(decode_runs(region.runs, item.size), expected)


def test_small_regions_do_not_vanish_from_thumbnails():
    runs = [50 * 100 + 50, 1, 100 * 100 - 50 * 100 - 51]
    item = Item(
        "a.png",
        "a.png",
        "",
        1,
        0.5,
        "abnormal",
        size=(100, 100),
        regions=(Region("anomaly", 1.0, 1, (50, 50, 1, 1), runs),),
    )
    assert outline_shape(item, (10, 10)).sum() == 1
    assert outline_shape(item, (10, 10))[5, 5] == 1


def test_thumbnail_shows_what_was_found(run):
    items = {item.name: item for item in read_run(run)}
    yellow = {name: is_yellow(draw_item(item, 144)) for name, item in items.items() if item.label == "abnormal"}
    found = yellow["nut/bent/2.png"]
    # The outline follows the edge of both regions, and nothing is drawn elsewhere.
    assert found[2, 4:14].all()
    assert found[11, 4:14].all()
    assert not found[:, 18:].any()
    assert not is_yellow(draw_item(items["nut/bent/3.png"], 144)).any()


def is_yellow(image):
    red, green, blue = np.moveaxis(np.asarray(image, int), 2, 0)
    return (red > 180) & (green > 160) & (blue < 60)


def test_peak_is_marked_where_no_region_was_found(tmp_path):
    (item,) = read_run(write_run(tmp_path, [predict("x/0.png", 0.9)]))
    drawn = is_yellow(draw_item(item, 144))
    rows, columns = np.nonzero(drawn)
    assert (round(rows.mean()), round(columns.mean())) == (12, 20)
    assert not drawn[12, 20]


def test_picture_stands_in_for_an_image_that_is_gone(tmp_path):
    run = write_run(tmp_path, [predict("x/0.png", 0.9)], with_images=False)
    (item,) = read_run(run)
    # 160 × 60 pixels, fitted.
    assert draw_item(item, 80).size == (80, 30)
    item.picture.unlink()
    assert draw_item(item, 80) is None


def test_image_that_has_changed_since_is_not_shown(tmp_path):
    (item,) = read_run(write_run(tmp_path, [predict("x/0.png", 0.9)]))
    assert draw_item(item, 144).size == SIZE[::-1]
    write_image(item.source, (SIZE[0] + 1, SIZE[1]), 0)
    assert draw_item(item, 160).size == (160, 60)


def test_relative_paths_do_not_lead_to_other_images(tmp_path, monkeypatch):
    run = write_run(tmp_path, [predict("x/0.png", 0.9)])
    change(run / "predictions.csv", f"{tmp_path}/", "")
    (tmp_path / "elsewhere").mkdir()
    write_image(tmp_path / "elsewhere/photos/x/0.png", SIZE, 1)
    monkeypatch.chdir(tmp_path / "elsewhere")
    (item,) = read_run(run)
    assert (item.path, item.source) == ("photos/x/0.png", tmp_path / "photos/x/0.png")
    # After a kill, nothing says where the images were.
    make_lines(run)
    (item,) = read_run(run)
    assert item.source is None
    assert draw_item(item, 160).size == (160, 60)


def test_deep_image_is_neither_white_nor_black(tmp_path):
    run = write_run(tmp_path, [predict("x/0.png")])
    (item,) = read_run(run)
    Image.fromarray(np.full(SIZE, 3 * 65535 // 4, np.uint16)).save(item.path)
    np.testing.assert_array_equal(np.asarray(draw_item(item, 144)), np.full((*SIZE, 3), 191))


def test_page_counts_verdicts_of_each_class(run):
    assert counts_of(text_of(run)) == [
        ["class", "images", "missed", "false alarm", "found", "passed", "unreadable"],
        ["all", "8", "2", "1", "2", "2", "1"],
        ["bolt", "3", "1", "0", "1", "1", "0"],
        ["nut", "4", "1", "1", "1", "1", "0"],
    ]


def test_page_of_a_prediction_counts_verdicts(tmp_path):
    page = text_of(write_run(tmp_path, [predict("x/0.png", 0.9), predict("x/1.png"), predict("x/2.png")]))
    assert counts_of(page) == [["class", "images", "abnormal", "normal"], ["nut", "3", "1", "2"]]
    assert "mistakes" not in page.split("</form>")[0]


def test_page_of_a_part_of_a_test_counts_the_others_too(tmp_path):
    page = text_of(write_run(tmp_path, [predict("x/0.png", 0.9, "normal"), predict("x/1.png")]))
    assert counts_of(page)[0] == ["class", "images", "missed", "false alarm", "found", "passed", "normal"]
    assert counts_of(page)[1] == ["nut", "2", "0", "1", "0", "0", "1"]


def test_page_holds_thumbnails_and_pictures(run):
    page = text_of(run)
    rows, thumbnails, pictures = rows_of(page), images_of(page, "t"), images_of(page, "p")
    # The unreadable image, which comes last, has neither.
    assert set(thumbnails) == set(pictures) == set(range(7))
    assert {image.format for image in (*thumbnails.values(), *pictures.values())} == {"WEBP"}
    assert {image.size for image in thumbnails.values()} == {SIZE[::-1]}
    assert {image.size for image in pictures.values()} == {(160, 60)}
    assert rows[0]["link"] == "images/bolt/bent/1.png"
    assert rows[7]["link"] == ""


def test_pictures_beyond_the_size_are_linked(run, tmp_path):
    whole = write_gallery(run)
    assert whole.embedded == 7
    half = write_gallery(run, tmp_path / "half.html", megabytes=(whole.size - 2000) / 1e6)
    assert half.size <= whole.size - 2000
    assert 0 < half.embedded < 7
    page = half.path.read_text(encoding="utf-8")
    # Those that come first, which are the mistakes.
    assert set(images_of(page, "p")) == set(range(half.embedded))
    assert rows_of(page)[6]["link"] == "run/images/nut/good/10.png"
    assert write_gallery(run, megabytes=0).embedded == 0


def test_addresses_of_pictures_are_quoted(tmp_path):
    run = write_run(tmp_path, [predict("50% #1?/é.png", 0.9)])
    assert rows_of(text_of(run))[0]["link"] == "images/50%25%20%231%3F/%C3%A9.png"


def test_pictures_on_another_drive_have_whole_addresses(tmp_path, monkeypatch):
    run = write_run(tmp_path, [predict("é 1.png", 0.9)])

    def refuse(path, start):
        message = f"{path} and {start} are on different drives"
        raise ValueError(message)

    monkeypatch.setattr("os.path.relpath", refuse)
    (item,) = read_run(run)
    link = describe_item(item, tmp_path / "page.html")["link"]
    assert link == f"file://{run}/images/%C3%A9%201.png"


def test_names_are_text_wherever_they_stand(tmp_path):
    names = [f"one/{HOSTILE.replace('/', '')}", "two/b.png"]
    words = ("<i>dent</i>",)
    classes = ["</script><script>alert(2)</script>", "<b>&\"'"]
    predictions = [
        predict(name, 0.9, words=words, class_name=class_name, explanation="<u>\nsecond line")
        for name, class_name in zip(names, classes, strict=True)
    ]
    run = write_run(tmp_path, predictions)
    (run / "run.yaml").write_text("x: </pre><script>alert(3)</script>\n")
    page = text_of(run)
    assert page.count("<script>") == 1
    for text in ("alert(1)</script>", "<i>", "<u>", "<b>"):
        assert text not in page
    rows = {row["name"]: row for row in rows_of(page)}
    assert set(rows) == set(names)
    assert rows[names[0]]["class"] == classes[0]
    assert rows[names[0]]["explanation"] == "<u>\nsecond line"
    choices = [unescape(text) for text in re.findall(r'<option value="[^"]*">(.*?)</option>', page, re.DOTALL)]
    assert {*classes, *words} <= set(choices)


def test_page_loads_nothing_from_elsewhere(run):
    page = text_of(run)
    head = page.split("</head>")[0]
    assert "default-src 'none'" in unescape(head)
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_choices_are_those_that_there_are(run, tmp_path):
    assert re.findall(r'<option value="([^"]*)">', text_of(run)) == [
        "first", "high", "low", "name",
        "", "bolt", "nut",
        "", "mistakes", "missed", "false alarm", "found", "passed", "abnormal", "normal", "unreadable",
        "", "dent", "scratch",
        "", "bolt/bent", "bolt/good", "nut/bent", "nut/good",
    ]  # fmt: skip
    plain = write_run(tmp_path / "plain", [predict("x/0.png", 0.9, words=("anomaly",))])
    assert re.findall(r'<select id="(\w+)"', text_of(plain)) == ["sort", "verdict"]


def test_record_of_the_run_is_shown(run):
    assert "<pre>run: test\n</pre>" in text_of(run)
    (run / "run.yaml").unlink()
    assert "<pre>" not in text_of(run)


def test_histogram_stacks_normal_and_abnormal_images():
    items = [make_item(score, "normal", "normal") for score in (0.01, 0.011, 0.31)]
    items += [make_item(score, "abnormal", "abnormal") for score in (0.012, 1.0)]
    drawn = draw_histogram(items)
    assert (drawn.low, drawn.high, drawn.most, drawn.has_truth) == (0, 1, 3, True)
    bars = [(round(bar.x / WIDTH * BINS), round(bar.height * 3 / HEIGHT), bar.abnormal) for bar in drawn.bars]
    assert bars == [(0, 2, False), (0, 1, True), (12, 1, False), (39, 1, True)]
    assert drawn.bars[0].y == pytest.approx(HEIGHT / 3)
    assert drawn.bars[1].y == pytest.approx(0)
    assert drawn.thresholds == [(WIDTH / 2, "0.500")]
    assert drawn.title == "Scores of 5 images, 0.010 to 1.000; 1 above the threshold (0.500)"
    assert drawn.bars[0].title == "0.000 to 0.025: 2 normal images"


def test_histogram_of_other_scores_begins_and_ends_with_them():
    drawn = draw_histogram([make_item(-3, "normal", threshold=2), make_item(5, "abnormal", threshold=2)])
    assert (drawn.low, drawn.high) == (-3, 5)
    assert drawn.thresholds == [(pytest.approx(WIDTH * 5 / 8), "2.000")]
    single = draw_histogram([make_item(7, threshold=None)])
    assert (single.low, single.high, single.thresholds) == (7, 8, [])
    assert single.title == "Scores of 1 image, 7.000 to 7.000"
    assert draw_histogram([make_item()]) is None


def test_single_image_among_thousands_is_seen():
    drawn = draw_histogram([make_item(0.1, "normal")] * 5000 + [make_item(0.9, "abnormal")])
    assert [bar.height for bar in drawn.bars] == [HEIGHT, 2]


def test_each_class_has_its_histogram(run):
    page = text_of(run)
    assert re.findall(r'<figure class="histogram" data-class="(\w*)"( hidden)?', page) == [
        ("", ""), ("bolt", " hidden"), ("nut", " hidden"),
    ]  # fmt: skip
    assert ">threshold 0.600</text>" in page


@pytest.mark.parametrize(
    ("path", "names", "expected"),
    [
        ("/d/good/0.png", ["good/0.png", "bad/0.png"], "good/0.png"),
        ("/d/a/0.png", ["a/0.png", "0.png"], "a/0.png"),
        ("/d/0.png", ["a/0.png", "0.png"], "0.png"),
        ("0.png", ["photos/0.png"], "photos/0.png"),
        ("../b/0.png", ["a/0.png", "b/0.png"], "b/0.png"),
        ("x/../b/0.png", ["a/0.png", "b/0.png"], "b/0.png"),
        ("C:\\d\\b\\0.png", ["a/0.png", "b/0.png"], "b/0.png"),
        ("0.png", ["a/0.png", "b/0.png"], None),
        ("/d/c/0.png", ["a/0.png", "b/0.png"], None),
        ("/d/1.png", ["a/0.png"], None),
        ("", ["a/0.png"], None),
    ],
)
def test_row_belongs_to_the_entry_with_the_longest_common_end(path, names, expected):
    found = FoundImages([Found(name, SIZE, ()) for name in names]).of(path)
    assert (found.name if found else None) == expected


def test_names_are_short_where_no_regions_were_written():
    assert short_names(["/d/e/good/0.png", "/d/e/bad/x/1.png"]) == ["good/0.png", "bad/x/1.png"]
    assert short_names(["/d/e/0.png", "/d/e/1.png"]) == ["e/0.png", "e/1.png"]
    assert short_names(["C:\\d\\a\\0.png", "C:\\d\\b\\0.png"]) == ["a/0.png", "b/0.png"]
    assert short_names(["0.png"]) == ["0.png"]


def test_lines_of_a_killed_run_are_read(run):
    expected = read_run(run)
    make_lines(run)
    assert read_run(run) == expected


def make_lines(run):
    """Make the lines that a killed run leaves, each twice, as processes that share images may."""
    lines = []
    coco = json.loads((run / "predictions.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    for image in coco["images"]:
        notes = [
            {**n, "category": names[n["category_id"]]} for n in coco["annotations"] if n["image_id"] == image["id"]
        ]
        lines += 2 * [json.dumps({"image": image, "annotations": notes})]
    (run / "predictions.json").unlink()
    (run / "predictions.json.lines").write_text("\n".join(lines) + "\n")


def test_table_alone_is_enough(run):
    (run / "predictions.json").unlink()
    items = {item.name: item for item in read_run(run)}
    assert len(items) == 8
    assert items["nut/bent/2.png"].regions == ()
    assert write_gallery(run).images == 8


def test_scores_that_are_not_finite_do_not_break_the_page(run):
    change(run / "predictions.csv", ",0.700000,", ",nan,")
    assert {row["name"]: row["score"] for row in rows_of(text_of(run))}["nut/good/2.png"] is None


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "predictions.csv").unlink(), r"run: no predictions\.csv in it; give the folder of a run"),
        (lambda run: cut(run / "predictions.csv", 40), r"predictions\.csv: image 8 is cut off; copy the table again"),
        (lambda run: cut(run / "predictions.csv", 1), r"image 8 is cut off"),
        (lambda run: change(run / "predictions.csv", "image_path,", "file,"), "no column image_path"),
        (
            lambda run: change(run / "predictions.csv", ",0.700000,", ",high,"),
            "image 3 has the score 'high', which is not",
        ),
        (
            lambda run: change(run / "predictions.csv", ",abnormal,2,", ",odd,2,"),
            "image 2 has the label 'odd'; known are",
        ),
        (lambda run: (run / "predictions.csv").write_bytes(b"\xff\xfe"), "is not a CSV file, or cut off"),
        (lambda run: (run / "predictions.csv").write_text(""), "no column image_path"),
        (lambda run: keep_header(run / "predictions.csv"), "has no images"),
        (lambda run: cut(run / "predictions.json", 30), r"predictions\.json: is damaged or cut off; copy it again"),
        (lambda run: change(run / "predictions.json", '"counts": [', '"counts": [1, '), "is damaged or cut off"),
        (lambda run: change(run / "predictions.json", '"bbox"', '"box"'), "is damaged or cut off"),
        (lambda run: (run / "predictions.json").write_text("[]"), "is damaged or cut off"),
    ],
)
def test_damaged_runs_are_named_in_one_line(run, damage, message, capsys):
    damage(run)
    with pytest.raises(ReportError, match=message):
        read_run(run)
    assert main(["gallery", str(run)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("python -m anovl_plugin.report gallery: error: ")
    assert printed.count("\n") == 1
    assert not (run / PAGE).exists()


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


def keep_header(path):
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def test_table_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(ReportError, match=r"cannot be read \(Is a directory\)"):
        read_table(tmp_path)


def test_regions_that_are_a_folder_are_named(run):
    (run / "predictions.json").unlink()
    (run / "predictions.json").mkdir()
    with pytest.raises(ReportError, match=r"predictions\.json: cannot be read \(Is a directory\)"):
        read_run(run)


def test_missing_folder_is_named(tmp_path, capsys):
    assert main(["gallery", str(tmp_path / "no")]) == 2
    assert "no: no such folder; give the folder of a run, such as results/AnoVL/latest" in capsys.readouterr().err


def test_file_in_place_of_a_folder_is_named(run, capsys):
    assert main(["gallery", str(run / "predictions.csv")]) == 2
    assert "predictions.csv: is not a folder; give the folder of a run" in capsys.readouterr().err


def test_place_that_cannot_be_written_is_named(run, tmp_path, capsys):
    assert main(["gallery", str(run), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["-1", "many", "nan", "10001"])
def test_size_is_checked(run, size, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["gallery", str(run), f"--megabytes={size}"])
    assert f"'{size}' is not a size from 0 to 10000" in capsys.readouterr().err


def test_command_says_what_it_wrote(run, tmp_path, capsys):
    assert main(["gallery", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = round((run / PAGE).stat().st_size / 1000)
    assert lines == [f"8 images, {size} kB: {run / PAGE}", "neither image nor picture could be read: 1"]
    assert main(["gallery", str(run), "--out", str(tmp_path / "page.html"), "--megabytes", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f" kB: {tmp_path / 'page.html'}")
    assert lines[1].startswith("large pictures in the page: 0; the others are loaded from the folder of the run")
    assert (tmp_path / "page.html").is_file()


def test_command_keeps_to_one_line_if_all_is_in_the_page(tmp_path, capsys):
    run = write_run(tmp_path, [predict("x/0.png", 0.9)])
    assert main(["gallery", str(run)]) == 0
    assert re.fullmatch(rf"1 image, \d+ kB: {run / PAGE}\n", capsys.readouterr().out)
