"""`prvr`: one sub-command per stage. Options come from the settings in `prvr_ray.config`; the work is in the stages.

Nothing heavy is imported before a command is known, so that help and mistakes answer at once.
"""

import argparse
import json
import os
import re
import sys
import time
import traceback
from typing import Any

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from prvr_ray.commands import COMMANDS, Command, Summary
from prvr_ray.config import PRESETS, SECTIONS, Config, resolve

EXIT_DONE, EXIT_UNUSABLE, EXIT_BROKEN, EXIT_INTERRUPTED = 0, 2, 3, 130


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's, but the lines of a command's notes stay lines."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: the process's.

    Returns:
        0 done, 1 finished with too many failures, 2 unusable input or configuration, 3 broken off by an error that is
        no word on the input: its traceback is printed.
    """
    try:
        arguments = build_parser().parse_args(argv)
        name = arguments.subcommand
        return _run(name, arguments[name])
    except argparse.ArgumentError as error:
        return _refuse(_with_valid_options(str(error)))
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'the same command goes on from what is there'}", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser() -> ArgumentParser:
    """The parser of all commands."""
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser(
        prog="prvr",
        exit_on_error=False,
        description="Text-to-video retrieval on Ray.",
        formatter_class=_HelpFormatter,  # of the commands' help, too
    )
    choices = parser.add_subcommands(required=True, title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        choices.add_subcommand(name, _command_parser(command), help=command.help)
    return parser


def _command_parser(command: Command) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=command.help, epilog=command.notes)
    for name, keywords in command.options.items():
        parser.add_argument(name, **keywords)
    parser.add_argument(
        "--config", metavar="FILE", help="settings as YAML, a path or a URI: section, then field: value"
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=command.preset,
        help="settings of a dataset; --config and options win",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    for section in command.sections:
        group = parser.add_argument_group(f"settings of {section}")
        for field, info in SECTIONS[section].model_fields.items():
            flat = [f"--{field.replace('_', '-')}"] if f"{section}.{field}" in command.short else []
            default = info.get_default(call_default_factory=True)
            group.add_argument(
                f"--{section}.{field}",
                *flat,
                dest=f"settings.{section}.{field}",
                type=info.annotation,
                default=argparse.SUPPRESS,
                help=f"{info.description} (default: {default})".replace("%", "%%"),
            )
    return parser


def _run(name: str, arguments: Namespace) -> int:
    command = COMMANDS[name]
    if arguments.quiet:
        os.environ["PRVR_QUIET"] = "1"
    begun = time.monotonic()
    try:
        summary = command.run(arguments, _settings(arguments))
    except (ValueError, OSError) as error:
        return _refuse(str(error))
    except Exception:  # 1 would say that the work is done
        traceback.print_exc()
        return EXIT_BROKEN
    summary.setdefault("seconds", round(time.monotonic() - begun, 1))
    _keep_record(name, arguments, summary)
    command.show(summary)
    if arguments.json:
        print(json.dumps(summary))
    return int(summary.get("exit_code", EXIT_DONE))


def _keep_record(name: str, arguments: Namespace, summary: Summary) -> None:
    """Remember a command that made something, for the report."""
    if "output" in summary and arguments.get("root") and not arguments.get("dry_run"):
        from prvr_ray.history import record

        try:
            record(arguments.root, name, summary)
        except OSError as error:  # the work is done all the same
            print(f"prvr: this command is not in the history: {error}", file=sys.stderr)


def _settings(arguments: Namespace) -> Config:
    """Defaults, then the preset, then the file, then the options given."""
    given = arguments.get("settings", Namespace()).as_dict()
    values = _read_settings_file(arguments.config) if arguments.config else {}
    for section, fields in given.items():
        if isinstance(values.setdefault(section, {}), dict):  # if not, `resolve` says what it is
            values[section] = {**values[section], **fields}
    return resolve(values, arguments.preset)


def _read_settings_file(path: str) -> dict[str, Any]:
    from prvr_ray.storage import get_file

    try:
        values = yaml.safe_load(get_file(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections ({', '.join(SECTIONS)}), each with `field: value` lines")
    return values


def _refuse(message: str) -> int:
    print(f"prvr: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_UNUSABLE


def _with_valid_options(message: str) -> str:
    """argparse's word on a mistake, in one line, with what would be valid."""
    unknown = re.search(r"unrecognized arguments: --(\w+)\.", message)
    if unknown and unknown[1] in SECTIONS:
        return f"{message}; {unknown[1]} has {', '.join(SECTIONS[unknown[1]].model_fields)}"
    if message.startswith('expected "subcommand"'):
        return f"which command? One of {', '.join(COMMANDS)}; `prvr COMMAND --help` explains each"
    required = re.fullmatch(r"the following arguments are required: (.*)", message)
    if required:
        places = {name for command in COMMANDS.values() for name in command.options if not name.startswith("-")}
        names = [name.rpartition(".")[2] for name in required[1].split(", ")]
        return f"required: {', '.join(name if name in places else '--' + name for name in names)}"
    message = re.sub(r'Parser key "(?:settings\.)?([\w.]+)":', r"\1:", message)
    return re.sub(r"<class '(\w+)'>", r"\1", message)
