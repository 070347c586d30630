"""Every command and Python block of README.md and of the guide is run, in the order of the pages, on small videos.

Two things take the place of what stands there: an encoder with random weights, and settings that make a run short. The
bucket of the README is one of an S3 server on loopback; files and folders have the names that the pages give them. What
needs a cluster, sets a machine up or measures for minutes is run elsewhere: `ELSEWHERE` names it, and a command that is
neither here nor there fails.

All commands run in one process of its own, so that they share one embedded Ray, whose workers know the bucket.
"""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest
import yaml
from support.pages import HOME, blocks, words_of

PAGES = (HOME / "README.md", HOME / "docs/guide.md")
ENCODER = "ViT-B-32:laion2b_s34b_b79k"
BUCKET = "my-bucket"

ELSEWHERE = {  # how a command begins -> what runs it
    "make test": ".ci/run",
    "make lint": ".ci/run",
    "make setup": ".ci/run",
    ".ci/run": "who changes something",
    "source ": ".ci/run, which calls what it would put on the path",
    "pip install": "make setup",
    "apt-get install": ".ci/run",
    "eval ": "tests/cli/test_main.py: completion",
    "prvr --help": "tests/cli/test_main.py: help",
    "prvr COMMAND --help": "tests/cli/test_main.py: help of every command",
    "prvr import --help": "tests/cli/test_main.py: help of every command",
    "prvr submit": "tests/stages/test_submit.py, on a head with its dashboard",
    "python benchmarks/": "who measures: benchmarks/README.md",
}

TRAIN = "--student.hidden_dim=16 --train.num_epochs=2 --train.videos_per_batch=4"
SHORT = {  # command -> settings that are added behind those of the page
    "demo": "--config=short-demo.yaml",
    "train": TRAIN,
    "tune": f"{TRAIN} --tune.num_trials=2 --tune.grace_epochs=1 --tune.confirm_top=0",
    "ablate": f"{TRAIN} --train.num_epochs=1 --tune.num_seeds=2 --tune.teacher_noise=[1.0]",
}
SHORT_DEMO = {
    "demo": {"num_videos": {"train": 6, "val": 3, "test": 4}, "num_stills": 64, "teacher_steps": 4, "tune_epochs": 1},
    "student": {"hidden_dim": 16},
    "train": {"num_epochs": 2, "videos_per_batch": 4},
    "tune": {"num_trials": 2, "grace_epochs": 1, "confirm_top": 0},
}

Step = tuple[str, list[str]]  # prvr and its arguments, or python and the code


def typed(text: str) -> Iterator[tuple[str, str]]:
    """What a page gives to type, in order: (language, block), and ("span", command) for those in the running text.

    A span is a command if it begins like one; `prvr train`, without an option, is only a name.
    """
    for language, block, span in re.findall(r"^```(\w*)\n(.*?)^```|`([^`\n]+)`", text, re.DOTALL | re.MULTILINE):
        if language in ("bash", "python"):
            yield language, block
        elif re.match(r"(make|pip|apt-get|eval|source|python) |\.ci/run|prvr .*--(help|\S+ \S)", span):
            yield "span", span


def steps_of(text: str, encoder: str) -> Iterator[Step]:
    """The steps that a text gives, those of the running text once; lines may set the shell's variables."""
    variables: dict[str, str] = {}
    seen: set[str] = set()
    for kind, given in typed(text):
        if kind == "span" and given in seen:
            continue
        seen.add(given)
        if kind == "python":
            yield "python", [given]
            continue
        for line in given.replace("\\\n", " ").splitlines():
            words = [Template(word).safe_substitute(variables) for word in words_of(line)]
            assignment = re.fullmatch(r"(\w+)=(.*)", words[-1]) if words else None
            if not words or any(" ".join(words).startswith(begin) for begin in ELSEWHERE):
                continue
            if assignment and words[:-1] in ([], ["export"]):
                variables[assignment[1]] = assignment[2]
            else:
                yield step_of([encoder if word == ENCODER else word for word in words])


def step_of(words: list[str]) -> Step:
    if words == ["make", "demo"]:
        [words] = [
            words_of(line) for line in re.findall(r"^\t\$\(BIN\)/(.* demo .*)", (HOME / "Makefile").read_text(), re.M)
        ]
    if words[:2] == ["python", "-c"]:
        return "python", words[2:]
    assert words[0] == "prvr", f"{' '.join(words)!r} is run by no test: say in ELSEWHERE by what it is"
    return "prvr", [*words[1:], *SHORT.get(words[1], "").split()]


def run_steps(steps: list[Step]) -> None:
    """What the child process does: run the steps, and print what each printed as one line of JSON."""
    from prvr_ray import cli
    from prvr_ray.stages.session import connect

    with connect():
        for kind, arguments in steps:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                if kind == "prvr":
                    code = cli.main(arguments)
                    assert code == 0, f"{arguments} ended with {code}"
                else:
                    exec(arguments[0], {})
            print(json.dumps({"step": [kind, *arguments], "printed": printed.getvalue()}), flush=True)


@pytest.fixture
def desk(s3_root, tmp_path) -> Path:
    """The folder in which a reader types: videos and captions there and in the bucket, released features, a teacher."""
    import boto3
    from support import released_layout
    from support.small_clip import write_small_clip

    from prvr_ray.demo.world import plan_world, queries_of, render

    scripts = plan_world(2, {"train": 15})
    # Of these names, the hash that deals out splits gives 9 to train, 2 to val and 4 to test.
    scripts = [replace(script, video_id=f"kitchen/{n:02d}.mp4") for n, script in enumerate(scripts)]
    videos = [render(script, str(tmp_path / "my-videos")) for script in scripts]
    render(replace(scripts[0], video_id="garden.mp4"), str(tmp_path / "more-videos"))
    moments = [{**query["moments"][0], "text": query["text"]} for query in queries_of(scripts)]
    guide = PAGES[1].read_text(encoding="utf-8")
    columns = blocks(guide, "csv")[0].splitlines()[0].split(",")
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(moments)
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        rows = [(path, script.video_id, "front") for path, script in zip(videos, scripts, strict=True)]
        csv.writer(file).writerows([("uri", "video_id", "camera", "recorded"), *((*row, "2024-06-01") for row in rows)])
    for settings in blocks(guide, "yaml"):
        (tmp_path / "study.yaml").write_text(settings)
    (tmp_path / "questions.txt").write_text("a person opens a fridge\nsomebody peels an orange\n")
    (tmp_path / "short-demo.yaml").write_text(yaml.safe_dump(SHORT_DEMO))
    for name in ("tvr", "activitynet", "charades"):
        released_layout.render(tmp_path / name, {"train": 6, "val": 3, "test": 3}, dataset=name)
    write_small_clip(tmp_path / "teacher")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for video, script in zip(videos, scripts, strict=True):
        s3.upload_file(str(video), BUCKET, f"videos/{script.video_id}")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1600)  # some forty commands, most of which start processes that load torch
def test_every_command_runs_in_the_order_of_the_pages(desk):
    encoder = f"{desk}/teacher/model.json:{desk}/teacher/weights.safetensors"
    steps = list(steps_of("\n".join(page.read_text(encoding="utf-8") for page in PAGES), encoder))
    assert len(steps) > 30
    command = [sys.executable, __file__, json.dumps(steps)]
    done = subprocess.run(command, cwd=desk, capture_output=True, text=True, timeout=1500, check=False)
    ran = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {ran[-1]['step'] if ran else 'nothing'}: {done.stderr[-3000:]}"
    assert [item["step"] for item in ran] == [[kind, *arguments] for kind, arguments in steps]
    assert "core_worker.cc" not in done.stderr  # Ray's own log is not for readers
    assert all(item["printed"].strip() for item in ran if item["step"][0] == "prvr")
    [found] = [item["printed"] for item in ran if "import prvr_ray" in item["step"][1]]
    assert found.startswith("kitchen/")
    demo, own = (
        (desk / root / "index.html").read_text("utf-8") for root in ("demo-root/reports/demo", "my-root/reports/first")
    )
    assert "✓ right" in demo
    assert "✓ right" in own
    assert "Paired differences over the queries" in demo
    check_answers_in_the_bucket()


def check_answers_in_the_bucket() -> None:
    """Both questions have all 15 videos, by rank, with moments in order."""
    from prvr_ray.storage import open_store, read_table

    scores = open_store(f"s3://{BUCKET}/collection").child("scores/answers")
    rows = [row for item in scores.list("part-") for row in read_table(scores, item.key).to_pylist()]
    ids = sorted({row["query_id"] for row in rows})
    assert len(ids) == 2
    assert [(row["query_id"], row["rank"]) for row in rows] == [(q, rank) for q in ids for rank in range(1, 16)]
    assert {row["video_id"] for row in rows} == {f"kitchen/{n:02d}.mp4" for n in range(15)}
    assert all(-1.001 <= row["score"] <= 1.001 for row in rows)
    moments = [(row["start_s"], row["peak_s"], row["end_s"]) for row in rows if row["peak_s"] is not None]
    assert len(moments) >= 2
    assert all(0 <= start <= peak <= end for start, peak, end in moments)


def test_every_exception_is_one_of_a_command_that_stands_there():
    lines = [
        line for page in PAGES for _, given in typed(page.read_text(encoding="utf-8")) for line in given.splitlines()
    ]
    assert [begin for begin in ELSEWHERE if not any(line.startswith(begin) for line in lines)] == []


def test_a_command_that_nothing_runs_is_an_error():
    with pytest.raises(AssertionError, match="'rm -rf my-root' is run by no test"):
        list(steps_of("```bash\nprvr status --root my-root\nrm -rf my-root\n```", ""))


if __name__ == "__main__":
    sys.path.insert(0, str(HOME))
    run_steps(json.loads(sys.argv[1]))
