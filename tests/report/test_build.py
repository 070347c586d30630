"""The report of a whole small collection, in a browser and in its words."""

import re
from pathlib import Path

import pytest
from support.read_only import refuse_puts
from support.report_world import BROKEN, HOSTILE, make_world
from support.study_summaries import summary, trial

from prvr_ray import cli
from prvr_ray.config import Config, ReportSettings
from prvr_ray.report.build import report
from prvr_ray.runs.run import open_run
from prvr_ray.storage import put_json

SETTINGS = ReportSettings(num_examples=2, num_resamples=200)
MAX_BYTES = 5 * 2**20


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def page(collection):
    trials = [trial(number, sumr=100.0 + number, lr=1e-4 * (number + 1)) for number in range(4)]
    put_json(collection.store.child("tune/s"), "summary.json", summary(trials))
    question = {"title": "Why?", "finding": "So.", "reference": "base", "rows": summary([])["proof"]}
    ablation = {"kind": "ablation", "questions": [question], "seeds": [1, 2, 3]}
    put_json(collection.store.child("tune/ablation"), "summary.json", ablation)
    said = report(SETTINGS, root=collection.store.uri, run="first", compare=["first", "second"])
    return Path(said["output"])


def text(path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_it_fits_phone_and_desk_and_asks_for_nothing(browser, page, width, scheme):
    browser.open(page, width=width, scheme=scheme)
    assert browser.overflowing() == []
    assert browser.console_errors() == []
    assert browser.requests() == []
    assert browser.run("return document.querySelectorAll('main > section').length") == 8
    assert browser.run("return document.querySelectorAll('section .missing').length") == 0
    assert browser.run("return document.querySelectorAll('figure svg').length") >= 9
    assert browser.run("return [...document.images].every(x => x.naturalWidth > 0)")
    assert browser.run("return document.querySelectorAll('.curve svg').length") >= 6 * 5


def test_hostile_captions_and_names_are_text(browser, page):
    browser.open(page, width=1400)
    assert browser.run("return document.title") == "Report of run first"
    assert browser.run("return document.querySelectorAll('script, [onerror]').length") == 0
    assert f"{BROKEN}: {HOSTILE}" in browser.run("return document.querySelector('#corpus').innerText")


def test_it_is_small(page):
    assert page.stat().st_size < MAX_BYTES


def test_the_verdicts_answer_the_three_questions(browser, page):
    browser.open(page, width=1400)
    searched, beat, fails = browser.run("return [...document.querySelectorAll('.verdicts dd')].map(x => x.innerText)")
    assert re.match(r"9 videos \(\d\.\d min\) with 27 queries: the test split of a collection of 30 videos\.", searched)
    assert searched.endswith("1 video could not be read.")
    assert beat.startswith(("Yes:", "No:", "This split cannot tell:"))
    assert "of the queries the right video is not the first answer" in fails


def test_answers_agree_with_the_evaluation(browser, page, collection):
    """The place of the right video in an answer is the rank that the evaluation, computed by brute force, gave it."""
    browser.open(page, width=1400)
    shown = browser.run("""return [...document.querySelectorAll('details')].map(item => [
        +item.querySelector('summary small').innerText.match(/rank (\\d+)/)[1],
        +item.querySelector('li.right').value, item.querySelectorAll('li').length])""")
    assert len(shown) == 6
    for rank, place, num_answers in shown:
        assert place == rank
        assert num_answers == (5 if rank <= 5 else 6)


def test_what_is_missing_is_named_with_its_command(tmp_path):
    collection = make_world(tmp_path, runs=())
    begun = open_run(collection.store.uri, "begun")
    begun.declare(Config(), {"features": "default"})
    said = report(SETTINGS, root=collection.store.uri, run="begun", compare=["begun", "other"])
    assert said["sections"] == 2
    commands = [re.search(r"`(prvr \w+)`", missing)[1] for missing in said["missing"]]
    assert commands == ["prvr train", "prvr evaluate", "prvr evaluate", "prvr tune", "prvr ablate", "prvr evaluate"]


def test_of_several_studies_one_is_chosen(tmp_path):
    collection = make_world(tmp_path, runs=())
    open_run(collection.store.uri, "begun").declare(Config(), {"features": "default"})
    for name in ("a", "b"):
        put_json(collection.store.child(f"tune/{name}"), "summary.json", summary([trial(0), trial(1)]))

    def missing(study: str) -> list[str]:
        said = report(SETTINGS, root=collection.store.uri, run="begun", study=study)
        return [line for line in said["missing"] if "stud" in line]

    assert missing("") == ["Several studies: choose one with --study: a, b."]
    assert missing("c") == ["No finished study c: choose one with --study: a, b."]
    assert missing("b") == []


def test_a_run_that_does_not_exist_is_one_line_and_exit_code_2(collection, capsys):
    assert cli.main(["report", "--root", collection.store.uri, "--run", "frist"]) == 2
    assert "no run at" in capsys.readouterr().err


def test_a_report_stays_in_its_folder(collection, capsys):
    assert cli.main(["report", "--root", collection.store.uri, "--run", "first", "--name", "../../page"]) == 2
    assert "is not a name" in capsys.readouterr().err


def test_nothing_at_all_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert cli.main(["report", "--root", str(tmp_path / "none"), "--run", "a"]) == 2
    assert "no collection at" in capsys.readouterr().err


def test_pictures_that_cannot_be_shown_are_excused(collection, page):
    for video in Path(collection.store.uri).parent.joinpath("videos/test").glob("*.mp4"):
        video.rename(video.with_suffix(".gone"))
    said = report(SETTINGS, root=collection.store.uri, run="second", name="without-videos")
    assert "No pictures:" in text(Path(said["output"]))


def test_a_root_that_may_only_be_read_leaves_the_page_in_a_temporary_folder(collection, monkeypatch, tmp_path, capsys):
    root = collection.store.uri
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refuse_puts(monkeypatch)
    assert cli.main(["report", "--root", root, "--run", "first", "--name", "unkept"]) == 1
    said = capsys.readouterr()
    [page] = tmp_path.rglob("index.html")
    assert "Report of run first" in text(page)
    assert said.out.splitlines()[-1] == f"output: {page}"
    assert "sections" in said.out
    [line] = said.err.splitlines()
    assert line.startswith(f"prvr: this report could not be kept in {root}/reports/unkept, so it lies in a temporary")
    assert "Read-only file system" in line
