"""`prvr`: parses the command line, runs the command, and turns its result or its error into an exit code.

Nothing heavy is imported before the command is known, so help and error messages appear at once.
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
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from prvr_ray.cli.commands import COMMANDS, Command, Summary
from prvr_ray.cli.help import CommandParser, HelpAll, HelpFormatter, add_settings, end_of_help
from prvr_ray.config import PRESETS, SECTIONS, Config, resolve
from prvr_ray.home import settle_home

EXIT_DONE, EXIT_UNUSABLE, EXIT_BROKEN, EXIT_INTERRUPTED = 0, 2, 3, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: those of this process.

    Returns:
        0 done, 1 finished, but with too many failures or with a result that could not be kept in ROOT, 2 unusable input
        or configuration, 3 unexpected error (traceback printed), 130 after Ctrl-C.
    """
    settle_home()
    try:
        arguments = build_parser().parse_args(argv)
        name = arguments.subcommand
        return _run(name, arguments[name])
    except argparse.ArgumentError as error:
        return _refuse(_with_valid_options(str(error)))
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {str(interrupt) or 'run the same command again to resume'}", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser() -> ArgumentParser:
    """Build the parser of all commands."""
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser(
        prog="prvr",
        exit_on_error=False,
        description="Text-to-video retrieval on Ray.",
        formatter_class=HelpFormatter,  # the commands' parsers inherit it
    )
    choices = parser.add_subcommands(required=True, title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        choices.add_subcommand(name, _command_parser(name, command), help=command.help)
    return parser


def _command_parser(name: str, command: Command) -> ArgumentParser:
    parser = CommandParser(exit_on_error=False, allow_abbrev=False, description=command.help)
    if command.sections:
        parser.add_argument("--help-all", action=HelpAll, help="print this help with all settings and exit")
    for option, keywords in command.options.items():
        parser.add_argument(option, **keywords)
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file of settings, a path or a URI: section, then field: value"
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=command.preset,
        help="start from a dataset's settings; --config and options override them",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    for section in command.sections:
        add_settings(parser, section, command.short)
    parser.epilog = end_of_help(name, parser, command.sections, command.notes)
    return parser


def _run(name: str, arguments: Namespace) -> int:
    command = COMMANDS[name]
    if arguments.quiet:
        os.environ["PRVR_QUIET"] = "1"
    begun = time.monotonic()
    try:
        summary = command.run(arguments.as_dict(), _settings(arguments))
    except (ValueError, OSError) as error:
        return _refuse(str(error))
    except Exception:  # Python's own exit code would be 1, which means too many failures
        traceback.print_exc()
        return EXIT_BROKEN
    summary.setdefault("seconds", round(time.monotonic() - begun, 1))
    notice = summary.get("not_kept") or _keep_record(name, arguments, summary)
    command.show(summary)
    if arguments.json:
        print(json.dumps(summary), flush=True)
    if notice:
        print(f"prvr: {notice}", file=sys.stderr)
    return int(summary.get("exit_code", EXIT_DONE))


def _keep_record(name: str, arguments: Namespace, summary: Summary) -> str | None:
    """Record a command that wrote something, for the report; return a warning if that fails."""
    if "output" in summary and arguments.get("root") and not arguments.get("dry_run"):
        from prvr_ray.collection.history import record

        try:
            record(arguments.root, name, summary)
        except OSError as error:  # the command itself succeeded
            return f"this command could not be recorded in the history: {error}"
    return None


def _settings(arguments: Namespace) -> Config:
    """Resolve the settings: defaults, overridden by the preset, then the file, then options."""
    given = arguments.get("settings", Namespace()).as_dict()
    values = _read_settings_file(arguments.config) if arguments.config else {}
    for section, fields in given.items():
        if isinstance(values.setdefault(section, {}), dict):  # if not, `resolve` reports the error
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
    """Rewrite an error message of argparse as one line that lists the valid choices."""
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
