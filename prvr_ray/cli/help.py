"""The help of a command: `--help` prints everyday settings, `--help-all` prints all, with readable defaults."""

import argparse
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from pydantic.fields import FieldInfo

from prvr_ray.config import SECTIONS

_MOST_ITEMS = 14  # longer lists and dicts are not printed as defaults
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's formatter, but it keeps the line breaks of notes and adds nothing but defaults to a help."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.option_strings == ["-h", "--help"]:
            return "print this help and exit"
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        default = "" if action.default == argparse.SUPPRESS else written(action.default)
        return f"{text} (default: {default})".replace("%", "%%") if default else text


class CommandParser(ArgumentParser):
    """The parser of one command. Its `--help` omits advanced settings."""

    advanced: frozenset[str] = frozenset()  # destinations

    def format_help(self, formatter: Any = None) -> str:
        """Return what `--help` prints."""
        hidden = [action for action in self._actions if action.dest in self.advanced]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help(formatter)
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text

    def format_all_help(self) -> str:
        """Return what `--help-all` prints."""
        return super().format_help()


class HelpAll(argparse.Action):
    """Option that prints the help with every setting and exits."""

    def __init__(self, option_strings: Any, dest: str, **keywords: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=keywords["help"])

    def __call__(self, parser: Any, *given: Any) -> None:
        """Print and exit."""
        print(parser.format_all_help(), end="")
        parser.exit()


def add_settings(parser: CommandParser, section: str, short: tuple[str, ...]) -> None:
    """Give a parser an option for each setting of a section.

    Args:
        short: settings that also have a short option, such as --fps for --ingest.fps.
    """
    settings = SECTIONS[section]
    group = parser.add_argument_group(f"settings of {section}")
    for name, info in settings.model_fields.items():
        flat = [f"--{name.replace('_', '-')}"] if f"{section}.{name}" in short else []
        group.add_argument(
            f"--{section}.{name}",
            *flat,
            dest=f"settings.{section}.{name}",
            type=info.annotation,
            default=argparse.SUPPRESS,
            metavar=_placeholder(info),
            help=_describe_field(name, info).replace("%", "%%"),
        )
    advanced = set(settings.model_fields) - settings.everyday
    parser.advanced |= {f"settings.{section}.{name}" for name in advanced}


def end_of_help(name: str, parser: CommandParser, sections: tuple[str, ...], notes: str) -> str:
    """Write the text below the options: the command's notes, and how to list the advanced settings."""
    count = sum(len(SECTIONS[section].model_fields) for section in sections)
    rest = f"{len(parser.advanced)} of {count} settings are advanced; `prvr {name} --help-all` prints them too"
    return "\n\n".join(filter(None, [notes, rest if parser.advanced else ""]))


def written(value: Any, name: str = "") -> str:
    """Format a default for people; empty if there is none, or if it is false or empty.

    >>> written(64 * 2**20, "shard_bytes"), written({"train": 0.8, "val": 0.2}), written(["mp4", "mkv"]), written(None)
    ('64 MiB', 'train 0.8, val 0.2', 'mp4, mkv', '')
    """
    if value is None or value is False or value in ("", [], {}):
        return ""
    if name.endswith("_bytes"):
        return next(f"{value // size:g} {unit}" for unit, size in (*_UNITS, ("bytes", 1)) if value % size == 0)
    if isinstance(value, bool | float):
        return "true" if value is True else f"{value:g}"
    if isinstance(value, dict | list) and len(value) > _MOST_ITEMS:
        return f"{len(value)} entries, listed in prvr_ray/config/tune.py"
    if isinstance(value, dict):
        return ", ".join(f"{key} {written(item)}" for key, item in value.items())
    return ", ".join(map(written, value)) if isinstance(value, list) else str(value)


def _describe_field(name: str, info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    default = "false" if value is False else written(value, name)
    return f"{info.description} (default: {default})" if default else str(info.description)


def _placeholder(info: FieldInfo) -> str:
    """Return the placeholder for a value in the usage: its type, or the allowed values."""
    kind = info.annotation
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) in (list, dict):
        return "LIST" if get_origin(kind) is list else "MAP"
    return {int: "N", float: "X", bool: "{true,false}"}.get(kind, "TEXT")  # type: ignore[arg-type]
