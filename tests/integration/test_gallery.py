"""The gallery in a browser: what a person clicks and types, and what the page then says."""

import base64
import json
import re
import shlex
from time import perf_counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anovl_plugin.report.gallery import write_gallery
from anovl_plugin.report.gallery.items import first_shown
from anovl_plugin.report.gallery.page import describe_page, render
from anovl_plugin.report.gallery.run_results import read_run
from anovl_plugin.report.gallery.thumbnails import encode
from tests.helpers.browser import NARROW, Page, open_browser
from tests.helpers.commands import run
from tests.helpers.gallery_runs import mixed_test, predict, write_run

MISTAKES_FIRST = [
    "bolt/bent/1.png", "nut/good/2.png", "nut/bent/3.png",
    "nut/bent/2.png", "bolt/bent/0.png", "bolt/good/0.png", "nut/good/10.png", "nut/bent/cut.png",
]  # fmt: skip


pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Return the page of a test of two products, which no test changes."""
    return write_gallery(write_run(tmp_path_factory.mktemp("mixed"), mixed_test())).path


@pytest.fixture
def page(browser, mixed):
    return Page(browser, mixed)


def test_opens_with_mistakes_first_and_without_complaints(page):
    assert page.names == MISTAKES_FIRST
    assert page.status == "8 images"
    assert [card.text.splitlines()[0] for card in page.all(".card")[:4]] == [
        "✗ missed 0.100", "✗ false alarm 0.700", "✗ missed 0.450", "▲ found 0.900",
    ]  # fmt: skip
    assert page.all(".card")[7].text.splitlines() == ["no image", "? unreadable", "nut/bent/cut.png"]
    loaded = "return [...document.querySelectorAll('.card img')].every((image) => image.naturalWidth === 32)"
    assert page.wait(lambda: page.browser.execute_script(loaded))
    assert page.complaints() == []


def test_asks_for_nothing_but_the_page(page):
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name.slice(0, 5))"
    assert set(page.browser.execute_script(script)) <= {"data:"}


@pytest.mark.parametrize(
    ("order", "first", "last"),
    [
        ("highest score", ["nut/bent/2.png", "bolt/bent/0.png"], ["bolt/bent/1.png", "nut/bent/cut.png"]),
        ("lowest score", ["bolt/bent/1.png", "nut/good/10.png"], ["nut/bent/2.png", "nut/bent/cut.png"]),
        ("name", ["bolt/bent/0.png", "bolt/bent/1.png"], ["nut/good/2.png", "nut/good/10.png"]),
    ],
)
def test_sorts(page, order, first, last):
    page.choose("sort", order)
    assert (page.names[:2], page.names[-2:]) == (first, last)
    page.choose("sort", "mistakes first")
    assert page.names == MISTAKES_FIRST


@pytest.mark.parametrize(
    ("choices", "places"),
    [
        ({"verdict": "mistakes"}, [0, 1, 2]),
        ({"verdict": "missed"}, [0, 2]),
        ({"verdict": "false alarm"}, [1]),
        ({"verdict": "found"}, [3, 4]),
        ({"verdict": "passed"}, [5, 6]),
        ({"verdict": "all abnormal"}, [1, 3, 4]),
        ({"verdict": "all normal"}, [0, 2, 5, 6]),
        ({"verdict": "unreadable"}, [7]),
        ({"class": "bolt"}, [0, 4, 5]),
        ({"defect": "scratch"}, [1, 3]),
        ({"defect": "dent"}, [3, 4]),
        ({"folder": "nut/good"}, [1, 6]),
        ({"class": "nut", "verdict": "missed"}, [2]),
        ({"class": "bolt", "defect": "scratch"}, []),
    ],
)
def test_filters(page, choices, places):
    for name, text in choices.items():
        page.choose(name, text)
    assert page.names == [MISTAKES_FIRST[place] for place in places]
    assert page.status == f"{len(places)} of 8 images"
    page.one("#reset").click()
    assert page.names == MISTAKES_FIRST


def test_searches_names_while_they_are_typed(page):
    page.one("#search").send_keys("GOOD/")
    assert page.names == ["nut/good/2.png", "bolt/good/0.png", "nut/good/10.png"]
    page.one("#search").send_keys("1")
    assert page.names == ["nut/good/10.png"]
    page.press("ENTER")
    assert page.names == ["nut/good/10.png"]


def test_counts_show_the_images_that_they_count(page):
    for button in page.all(".count"):
        count = int(button.text.split()[0])
        button.click()
        assert len(page.names) == count
        assert button.get_attribute("aria-pressed") == "true"
        assert len(page.all(".count[aria-pressed=true]")) == 1


def test_histogram_is_that_of_the_class(page):
    def shown():
        return [figure.text for figure in page.all(".histogram") if figure.is_displayed()]

    assert shown()[0].splitlines()[-2:] != []
    assert "Scores of 7 images, 0.100 to 0.900; 3 above the thresholds (0.500, 0.600)" in shown()[0]
    page.choose("class", "bolt")
    (text,) = shown()
    assert "threshold 0.600" in text
    assert "Scores of 3 images, 0.100 to 0.800; 1 above the threshold (0.600)" in text


def test_image_opens_with_all_that_is_known(page):
    page.all(".card")[3].click()
    assert page.open_name == "nut/bent/2.png"
    assert page.one("#viewer-verdict").text == "found: called abnormal, ground truth abnormal"
    assert page.picture_width() == 160
    rows = [row.text for row in page.all("#regions tbody tr")]
    assert rows == ["scratch 0.900 40 4, 2, 10 × 4", "dent 0.900 40 4, 8, 10 × 4"]
    facts = page.one("#facts").text.splitlines()
    assert facts[:6] == ["score", "0.900", "threshold", "0.500", "class", "nut"]
    assert facts[-1].endswith("photos/nut/bent/2.png")
    page.one("#close").click()
    assert not page.one("#viewer").is_displayed()
    assert page.complaints() == []


def test_next_and_previous_stay_within_what_is_shown(page):
    page.choose("verdict", "mistakes")
    page.all(".card")[0].click()
    assert not page.one("#previous").is_enabled()
    page.one("#next").click()
    page.one("#next").click()
    assert (page.open_name, page.one("#position").text) == ("nut/bent/3.png", "3 of 3")
    assert not page.one("#next").is_enabled()
    page.one("#previous").click()
    assert page.open_name == "nut/good/2.png"


def test_unreadable_image_says_why(page):
    page.all(".card")[7].click()
    assert page.one("#note").text == "nut/bent/cut.png cannot be read (it is cut off)"
    assert not page.one("#regions").is_displayed()


def test_everything_works_by_keyboard(page):
    page.press("TAB")
    assert page.focused.text == "Skip to the images"
    page.press("ENTER", "TAB")
    assert page.focused.text.endswith("bolt/bent/1.png")
    page.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_LEFT")
    assert page.focused.text.endswith("nut/good/2.png")
    page.press("ENTER")
    assert page.open_name == "nut/good/2.png"
    page.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_LEFT")
    assert page.open_name == "nut/bent/3.png"
    page.press("ESCAPE")
    assert not page.one("#viewer").is_displayed()
    # The focus returns to the image that was open last, soon after the browser itself returned it to where it was.
    page.wait(lambda: page.focused.text.endswith("nut/bent/3.png"))
    page.press("END")
    assert page.focused.text.endswith("nut/bent/cut.png")
    page.press("HOME")
    assert page.focused.text.endswith("bolt/bent/1.png")


def test_arrows_move_by_lines(browser, mixed):
    page = Page(browser, mixed, NARROW)
    page.browser.execute_script("document.querySelector('.card').focus()")
    page.press("ARROW_DOWN")
    # Two images a line.
    assert page.focused.text.endswith("nut/bent/3.png")
    page.press("ARROW_DOWN", "ARROW_UP")
    assert page.focused.text.endswith("nut/bent/3.png")


def test_fits_a_small_screen(browser, mixed):
    page = Page(browser, mixed, NARROW)
    overflow = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert page.browser.execute_script(overflow) == [360, 360]
    page.choose("verdict", "missed")
    assert page.names == ["bolt/bent/1.png", "nut/bent/3.png"]
    page.all(".card")[1].click()
    assert page.open_name == "nut/bent/3.png"
    assert page.browser.execute_script(overflow) == [360, 360]
    for name in ("previous", "next", "close"):
        box = page.one(f"#{name}").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    # The panels of a picture stay large enough to see, and move sideways.
    wide = "const f = document.getElementById('frame'); return [f.scrollWidth, f.clientWidth]"
    assert page.picture_width() == 160
    scrolled, visible = page.browser.execute_script(wide)
    assert scrolled > 2 * visible
    page.one("#close").click()
    assert not page.one("#viewer").is_displayed()


def test_linked_pictures_are_those_beside_the_page(browser, tmp_path):
    run = write_run(tmp_path, [predict("50% #1?/é'\".png", 0.9)])
    written = write_gallery(run, megabytes=0)
    page = Page(browser, written.path)
    page.one(".card").click()
    assert page.picture_width() == 160
    assert page.complaints() == []
    # A page that was mailed without them says so, and shows what it has.
    written.path.rename(tmp_path / "mailed.html")
    page = Page(browser, tmp_path / "mailed.html")
    page.one(".card").click()
    note = page.wait(lambda: page.one("#note").text)
    assert note == "The larger picture is not here; it was images/50% #1?/é'\".png, seen from this page."
    assert page.picture_width() == 32


def test_hostile_names_are_only_text(browser, tmp_path):
    name = "<img src=x onerror=alert(1)>&\"'/<b>日本\u2028</script><script>alert(2)<.png".replace("</s", "<\\s")
    class_name = "</script><script>alert(3)</script>"
    run = write_run(tmp_path, [predict(name, 0.9, words=("<i>dent",), class_name=class_name), predict("b/c.png")])
    page = Page(browser, write_gallery(run).path)
    page.choose("class", class_name)
    page.choose("defect", "<i>dent")
    assert len(page.names) == 1
    assert page.names[0].startswith("<img src=x onerror=alert(1)>&\"'/<b>日本")
    page.one(".card").click()
    assert page.open_name.startswith("<img src=x onerror=alert(1)>")
    assert "<i>dent" in page.one("#regions").text
    assert class_name in page.one("#facts").text
    assert page.complaints() == []


def test_no_script_but_its_own_may_run(browser, tmp_path):
    path = write_gallery(write_run(tmp_path, [predict("x/0.png", 0.9)])).path
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<main", "<script>document.title = 'changed'</script><main", 1), encoding="utf-8")
    page = Page(browser, path)
    assert page.browser.title == "nut · 1 image"
    (complaint,) = page.complaints()
    assert "Content Security Policy" in complaint


def test_many_images_are_drawn_as_they_come_into_view(browser, tmp_path):
    predictions = [predict(f"x/{index:04}.png", index / 1000) for index in range(500)]
    written = write_gallery(write_run(tmp_path, predictions, with_images=False, with_pictures=False))
    page = Page(browser, written.path)
    assert page.status == "500 images"
    assert 120 <= len(page.all(".card")) < 500
    page.browser.execute_script("document.querySelector('.card').focus()")
    page.press("END")
    assert page.focused.text.endswith("x/0000.png")
    assert len(page.all(".card")) == 500
    assert not page.one("#more").is_displayed()
    page.choose("sort", "lowest score")
    assert len(page.all(".card")) < 500
    # Without scrolling, as programs that read a page aloud do.
    page.browser.execute_script("document.getElementById('more').click()")
    assert page.wait(lambda: len(page.all(".card")) >= 240)


def test_ten_thousand_results_open(browser, tmp_path):
    predictions = [predict(f"x/{index:04}.png", index / 10000, "normal") for index in range(10000)]
    run = write_run(tmp_path, predictions, with_images=False, with_pictures=False)
    items = sorted(read_run(run), key=first_shown)
    # About as large as those of photographs.
    thumbnail = encode(Image.fromarray(np.random.default_rng(0).integers(0, 90, (48, 48, 3), np.uint8)), 45)
    target = run / "gallery.html"
    thumbnails = [base64.b64encode(thumbnail).decode()] * len(items)
    context = describe_page(run, target, items) | {"thumbnails": thumbnails, "pictures": {}}
    target.write_text(render(context), encoding="utf-8")
    start = perf_counter()
    page = Page(browser, target)
    assert page.status == "10000 images"
    # It takes half a second; this fails if all images are drawn at once, even on a slow machine.
    assert perf_counter() - start < 10
    assert len(page.all(".card")) < 500
    page.one("#search").send_keys("777")
    assert page.status == "19 of 10000 images"


def test_real_run_opens(browser, tmp_path):
    data = "--data anovl_plugin.demo.DemoSurfaces"
    (tmp_path / "words.yaml").write_text("extends: paper\ndefects: [paint, plastic]\n")
    model = "--model AnoVL --model.backbone anovl-demo --model.domain texture --model.prompts words.yaml"
    done = run(shlex.split(f"anomalib test {model} {data}"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "results").rglob("v0")
    done = run(shlex.split(f"python -m anovl_plugin.report gallery {folder}"), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(rf"45 images, \d\.\d MB: {folder / 'gallery.html'}\n", done.stdout)
    page = Page(browser, folder / "gallery.html")
    assert page.status == "45 images"
    assert len(page.all(".card img")) == 45
    table = pd.read_csv(folder / "predictions.csv")
    assert page.one("tbody tr").text.split()[1] == "45"
    assert sum(int(button.text.split()[0]) for button in page.all(".count:not([data-verdict=''])")) == 45
    words = json.loads((folder / "predictions.json").read_text())
    named = {word["id"]: word["name"] for word in words["categories"]}
    for word in {named[note["category_id"]] for note in words["annotations"]}:
        images = {note["image_id"] for note in words["annotations"] if named[note["category_id"]] == word}
        page.choose("defect", word)
        assert page.status == f"{len(images)} of 45 images"
    page.one("#reset").click()
    page.choose("folder", "crack")
    page.choose("sort", "highest score")
    highest = table[table["image_path"].str.contains("/crack/")].sort_values("score").iloc[-1]
    page.all(".card")[0].click()
    assert highest["image_path"].endswith(page.open_name)
    assert f"{highest['score']:.3f}" in page.one("#facts").text
    assert highest["explanation"] in page.one("#facts").text
    assert page.picture_width() > 1000
    assert page.complaints() == []
