"""The pages of the documentation, and what can be typed in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).parents[2]


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages, in the order of the page."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each line of the shell blocks, without comments."""
    for block in blocks(text, "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            yield words_of(line)


def words_of(line: str) -> list[str]:
    """A line as a shell cuts it, without its comment; variables and operators stay as they are written."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)
