"""The report in a real browser: it loads, it is readable, it answers the pointer, nothing runs."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from chromium import Chromium
from report_runs import HOSTILE, POINTS, colour, make_run

from sslzoo.cli import main
from sslzoo.data.video_file import write_video

PHONE, DESKTOP = 360, 1280
MARK = "sslzoo report"
FOLDER = HOSTILE.replace("/", "|")  # the name of a run
# How often such a name stands in a section's text: one more or less is a place that changed.
PLACES = {"Leaderboard": 2, "Curves": 1, "Evaluation": 9, "Embedding": 3, "Pictures": 1,
          "Compute": 1, "Configuration": 3}  # fmt: skip
# In both legends, as heading, in the verdict on collapse, a line and 4 column headings of tables.
OF_FOLDER = {"2 runs": 1, FOLDER: 1, "Curves": 2, "Leaderboard": 5}


@pytest.fixture(scope="module")
def browser():
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on this machine; CONTRIBUTING.md says how to install it")
    found = Chromium()
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of two runs, one of which has code for names everywhere."""
    folder = tmp_path_factory.mktemp("runs")
    plain = make_run(folder / "plain", accuracy=0.65)
    (plain / "propagated").mkdir()
    frames = [np.full((64, 96, 3), shade, np.uint8) for shade in range(0, 240, 20)]
    write_video(plain / "propagated/overlay.mp4", frames)
    hostile = make_run(folder / FOLDER, word=HOSTILE)
    page = folder / "report.html"
    assert main(["report", str(hostile), str(plain), "--out", str(page)]) == 0
    return page


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_loads_and_fits_the_window(browser, report, width, scheme):
    browser.open(report, width, scheme=scheme)
    assert browser.ask("document.querySelector('.kind').textContent") == MARK
    images = browser.ask(
        "Promise.all([...document.images].map(async i => (await i.decode(), i.naturalWidth)))"
    )
    assert len(images) == 10 and min(images) > 0  # 2 runs: sheet, neighbours, 3 epochs
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.faults == []
    assert [url.split(":")[0] for url in browser.requests if not url.startswith("data:")] == [
        "file"
    ]


def test_the_video_plays(browser, report):
    browser.open(report, DESKTOP)
    size = browser.ask("""(async () => {
        const video = document.querySelector("video");
        await video.play();
        return [video.videoWidth, video.videoHeight];
    })()""")
    assert size == [96, 64] and browser.faults == []


def test_nothing_on_a_phone_is_cut_off_or_too_small(browser, report):
    """What is wider than the window stands in a box that scrolls by itself."""
    browser.open(report, PHONE)
    wide = browser.ask("""[...document.querySelectorAll("main *, header *")].filter(e =>
        !e.closest(".wide, script, dialog") && e.getBoundingClientRect().right > innerWidth + 1
        ).map(e => e.outerHTML.slice(0, 80))""")
    assert wide == []
    smallest = browser.ask("""Math.min(...[...document.querySelectorAll("main *")].filter(
        e => !e.closest("svg, script") && e.checkVisibility() && e.textContent.trim()
        ).map(e => parseFloat(getComputedStyle(e).fontSize)))""")
    assert smallest >= 12


def luminance(rgb):
    """Of `rgb(r, g, b)`, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in rgb.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_light_and_dark_differ_and_both_can_be_read(browser, report):
    papers = {}
    for scheme in ("light", "dark"):
        browser.open(report, PHONE, scheme=scheme)
        for element, least in (("body", 7), (".hint", 4.5), ("th small", 4.5)):
            ink, paper = (luminance(text) for text in browser.ask(f"""(() => {{
                const style = getComputedStyle(document.querySelector({json.dumps(element)}));
                return [style.color, getComputedStyle(document.body).backgroundColor];
            }})()"""))  # fmt: skip
            contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
            assert contrast >= least, (scheme, element)
        papers[scheme] = paper
    assert papers["light"] > 0.8 and papers["dark"] < 0.05


def place(browser, point):
    """Where in the window a point of the first map stands, after scrolling there."""
    box = browser.ask("""(() => {
        const canvas = document.querySelector(".plane > canvas");
        canvas.scrollIntoView({block: "center"});
        const box = canvas.getBoundingClientRect();
        return [box.x, box.y, box.width];
    })()""")
    span, height = 9, POINTS // 10 - 1  # the points stand on a grid of 10 x 6
    side, margin = box[2] - 28, 14
    x, y = point % 10 / span, (span - height) / 2 / span + point // 10 / span
    return box[0] + margin + x * side, box[1] + margin + (1 - y) * side


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("point", [0, 23, POINTS - 1])
def test_a_point_shows_its_image_and_class(browser, report, width, point):
    browser.open(report, width)
    browser.move(*place(browser, point))
    seen = browser.ask("""(() => {
        const tip = document.querySelector(".tip");
        const canvas = tip.querySelector("canvas");
        const at = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1);
        const box = tip.getBoundingClientRect();
        return {shown: tip.checkVisibility(), pixel: [...at.data], words: tip.textContent,
                inside: box.left >= 0 && box.right <= innerWidth};
    })()""")
    assert seen["shown"] and seen["inside"]
    assert seen["pixel"] == [*colour(point), 255]
    assert seen["words"] == f"{['cat', 'dog' + HOSTILE][point % 2]} · image {3 * point}"
    browser.move(1, 1)
    assert browser.ask("document.querySelector('.tip').checkVisibility()") is False
    assert browser.faults == []


def test_another_map_moves_the_points_and_a_class_can_be_shown_alone(browser, report):
    browser.open(report, DESKTOP)
    browser.click(".choices button:nth-child(2)")  # the same places in reverse order
    browser.move(*place(browser, 5))
    assert browser.ask("document.querySelector('.tip').dataset.point") == str(POINTS - 6)
    browser.click(".embedding .legend li:nth-child(2) button")  # only odd points
    browser.move(*place(browser, 9))  # there stands point 50
    assert browser.ask("document.querySelector('.tip').checkVisibility()") is False


def test_a_chart_tells_its_values(browser, report):
    browser.open(report, DESKTOP)
    x, y = browser.ask("""(() => {
        const svg = document.querySelector(".chart svg");
        svg.scrollIntoView({block: "center"});
        const box = svg.getBoundingClientRect();
        return [box.right - 2, box.y + box.height / 2];
    })()""")
    browser.move(x, y)
    reading = browser.ask("document.querySelector('.reading').textContent")
    assert browser.ask("document.querySelector('.chart figcaption').textContent") == "loss"
    assert reading == "step 30\n2\n2"  # both runs


def test_the_slider_shows_another_epoch(browser, report):
    browser.open(report, PHONE)
    shown = """[...document.querySelectorAll(".series")[0].querySelectorAll("[data-epoch]")]
        .filter(e => e.checkVisibility()).map(e => e.dataset.epoch).join()"""
    assert browser.ask(shown) == "3"
    browser.ask("""(() => {
        const slider = document.querySelector(".series input");
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
    })()""")
    assert browser.ask(shown) == "1"


def test_a_heading_sorts_the_leaderboard(browser, report):
    browser.open(report, DESKTOP)
    order = """[...document.querySelectorAll(".board tbody tr")].map(
        row => row.cells[0].textContent.trim() === "plain")"""
    column = browser.ask("""[...document.querySelectorAll(".board thead th")].findIndex(
        th => th.textContent.includes("20 nearest"))""")
    assert browser.ask(order) == [False, True]
    browser.click(f".board thead th:nth-child({column + 1})")
    assert browser.ask(order) == [True, False]
    browser.click(f".board thead th:nth-child({column + 1})")
    assert browser.ask(order) == [False, True]


def test_a_picture_opens_in_full_size(browser, report):
    browser.open(report, PHONE)
    browser.click(".picture .zoom")
    assert browser.ask("document.querySelector('dialog img').naturalWidth") == 700
    browser.click("dialog")
    assert browser.ask("document.querySelector('dialog').open") is False


def count(word, parts):
    """{heading: how often the word stands under it}, without those where it does not."""
    found = Counter()
    for heading, text in parts:
        found[heading] += text.count(word)
    return {heading: number for heading, number in found.items() if number}


def test_names_that_are_code_stay_text(browser, report):
    """Escaped where they stand; and the policy of the page would not run them."""
    browser.open(report, DESKTOP)
    assert browser.ask("typeof hacked") == "undefined"
    assert browser.ask("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    scripts = browser.ask("[...document.scripts].filter(s => s.type === '').length")
    assert scripts == 1
    parts = browser.ask("""[...document.querySelectorAll("section, header")].map(part =>
        [part.querySelector("h1, h2").textContent, part.textContent])""")
    assert count(HOSTILE, parts) == PLACES and count(FOLDER, parts) == OF_FOLDER
    assert browser.ask("document.querySelector('#run0 .card .hint').textContent") == (
        f"a note{HOSTILE}"), "nor is it a template"  # fmt: skip
    browser.ask("""void (() => {
        const script = document.createElement("script");
        script.textContent = "hacked = 1";
        document.body.append(script);
    })()""")
    assert browser.ask("typeof hacked") == "undefined"
