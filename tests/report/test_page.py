"""The page in a browser: it fits a phone and a desk, asks for nothing, and shows untrusted text as text."""

import io
from base64 import b64encode

import numpy as np
import pytest
from PIL import Image

from prvr_ray.report.figures import Chart, Line, Span, draw_lines, draw_scores
from prvr_ray.report.page import (
    Answer,
    Cell,
    Facts,
    Figure,
    Figures,
    Page,
    Question,
    Questions,
    Section,
    Table,
    Text,
    render,
)

HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title=1">'
LONG = "a/" + "very-long-name-without-a-break" * 6 + ".mp4"


def picture() -> str:
    sink = io.BytesIO()
    Image.new("RGB", (768, 72), "teal").save(sink, "jpeg")
    return "data:image/jpeg;base64," + b64encode(sink.getvalue()).decode()


def answer(rank: int, is_right: bool) -> Answer:
    curve = draw_scores(np.arange(9.0), np.linspace(0, 1, 8), (0, 1), Span(2, 4), [Span(3, 5)])
    strips = (picture(), picture())
    return Answer(rank, LONG, is_right, "score 0.531", ("0:00", "0:08"), "found 0:02–0:04", curve, strips, HOSTILE)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    svg = draw_lines([Line("fused", [1, 2, 3], [4, 5, 6])], Chart("epoch", "SumR"))
    numbers = [Cell("31.2", "27.1–35.0")] * 8
    columns = ["row", "R@1", "R@5", "R@10", "R@100", "SumR", "MedR", "MeanR", "mAP"]
    blocks = [
        Text(HOSTILE + LONG),
        Facts([("collection", "s3://" + LONG), (HOSTILE, HOSTILE)]),
        Table("recall", columns, [["teacher", *numbers], [HOSTILE, *numbers], [LONG, *numbers]], strong=HOSTILE),
        Figures([Figure(svg, HOSTILE, HOSTILE)] * 3),
        Questions("Best", [Question(HOSTILE, 1, [answer(1, True), answer(2, False)])]),
    ]
    sections = [Section("all", HOSTILE, blocks), Section("study", "Search", missing=f"{HOSTILE}: `prvr tune`")]
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render(Page(HOSTILE, LONG, [(HOSTILE, LONG)], sections)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_it_fits_the_viewport_and_asks_for_nothing(browser, path, width, scheme):
    browser.open(path, width=width, scheme=scheme)
    assert browser.run("return innerWidth") == width
    assert browser.overflowing() == []
    assert browser.console_errors() == []
    assert browser.requests() == []
    assert browser.run("return [...document.querySelectorAll('figure svg')].every(x => x.clientHeight > 100)")
    assert browser.run("return [...document.querySelectorAll('.answers img')].every(x => x.naturalWidth > 0)")


def test_untrusted_text_is_shown_and_never_run(browser, path):
    browser.open(path, width=1400)
    assert browser.run("return document.title") == HOSTILE
    assert browser.run("return document.querySelectorAll('script, [onerror]').length") == 0
    assert HOSTILE in browser.run("return document.querySelector('summary').innerText")


def test_light_and_dark_differ_and_both_can_be_read(browser, path):
    def contrast(scheme):
        browser.open(path, width=1400, scheme=scheme)
        colours = browser.run("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        luminances = []
        for colour in colours:
            channels = np.array([int(part) / 255 for part in colour[4:-1].split(",")])
            linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
            luminances.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
        return luminances

    (ink, page), (dark_ink, dark_page) = contrast("light"), contrast("dark")
    assert page / ink >= 7
    assert dark_ink / dark_page >= 7


def test_everything_that_opens_or_scrolls_is_reached_by_keyboard(browser, path):
    from selenium.webdriver.common.keys import Keys

    browser.open(path, width=380)
    reached = set()
    for _ in range(12):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.run("const x = document.activeElement; return x.className || x.tagName"))
    assert {"skip", "A", "scroll", "SUMMARY"} <= reached


def test_right_and_wrong_are_told_apart_without_colour(browser, path):
    browser.open(path, width=1400)
    marks = browser.run("return [...document.querySelectorAll('.mark')].map(x => x.innerText)")
    assert marks == ["✓ right", "✗ wrong"]
    borders = browser.run(
        "return [...document.querySelectorAll('.answers li')].map(x => getComputedStyle(x).borderLeftStyle)"
    )
    assert borders == ["solid", "dashed"]


def test_what_is_missing_is_said_where_it_would_stand(browser, path):
    browser.open(path, width=1400)
    assert browser.run("return document.querySelector('#study .missing').innerText") == f"{HOSTILE}: prvr tune"
    assert browser.run("return document.querySelector('#study code').innerText") == "prvr tune"
    assert browser.run("return document.querySelectorAll('nav a').length") == 1
