"""What the documentation says can be typed is understood, what it links is there, what it quotes stands in the code.

Here commands are parsed; `test_readme_runs.py` runs those of the README and of the guide.
"""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pages import HOME, blocks, shell_lines

from prvr_ray.cli.main import build_parser

PAGES = sorted(
    page for pattern in ("*.md", "docs/*.md", "cluster/**/*.md", "benchmarks/*.md") for page in HOME.glob(pattern)
)
NAMES = [str(page.relative_to(HOME)) for page in PAGES]


def prvr_commands(text: str) -> Iterator[list[str]]:
    """The arguments of `prvr ...` and of `jobs/NAME.py ...`, up to the end of the command."""
    for words in shell_lines(text):
        for start, word in enumerate(words):
            rest = words[start + 1 :]
            end = next((place for place, item in enumerate(rest) if set(item) <= set("&|;<>()")), len(rest))
            if Path(word).name == "prvr":
                yield rest[:end]
            elif word.startswith("jobs/") and word.endswith(".py"):
                yield [Path(word).stem, *rest[:end]]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_is_understood(page):
    for arguments in prvr_commands(page.read_text(encoding="utf-8")):
        if "--help" not in arguments:
            build_parser().parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (HOME / "Makefile").read_text(), re.MULTILINE))
    named = [words[1] for words in shell_lines(page.read_text(encoding="utf-8")) if words[:1] == ["make"]]
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_python_block_compiles(page):
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(block, str(page), "exec")


def test_every_file_of_the_readmes_tree_exists():
    """Below prvr_ray/: a package at two spaces, its files at four, files of prvr_ray itself at two."""
    tree = (HOME / "README.md").read_text("utf-8").partition("\nprvr_ray/\n")[2].partition("\njobs/")[0]
    top = package = HOME / "prvr_ray"
    found = []
    for line in tree.splitlines():
        if re.match(r"  \w", line):
            folder = re.match(r"  (\w+)/ ", line)
            package = top / folder[1] if folder else top
        found += [package / name for name in re.findall(r"\b\w+\.py\b", line)]
    assert len(found) > 80
    assert [str(path.relative_to(HOME)) for path in found if not path.is_file()] == []


def test_the_figures_are_what_the_script_draws(tmp_path):
    drawing = runpy.run_path(str(HOME / "docs/draw_figures.py"))
    drawing["main"](tmp_path)
    for figure in sorted(tmp_path.iterdir()):
        assert figure.read_text() == (HOME / "docs/figures" / figure.name).read_text(), f"{figure.name}: draw it again"


def test_the_commands_are_found():
    lines = [
        "A=1 prvr train --root r \\",
        "  --run a && echo x   # prvr status",
        "ray job submit -- python jobs/score.py --k 1",
    ]
    text = "\n".join(["```bash", *lines, "```"])
    assert list(prvr_commands(text)) == [["train", "--root", "r", "--run", "a"], ["score", "--k", "1"]]


def test_messages_in_the_guide_are_the_codes_own():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (HOME / "prvr_ray").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", sources)
    table = (HOME / "docs/guide.md").read_text(encoding="utf-8").partition("by error message\n\n|")[2]
    messages = re.findall(r"^\| (`{1,2})(.+?)\1 \|", table, re.MULTILINE)
    assert len(messages) > 10
    for _, message in messages:
        for part in message.split("…"):
            assert part.strip() in source or part.strip(" ;:") in source, f"{message!r}: {part!r}"
