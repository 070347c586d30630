"""The command line: settings win in the right order, mistakes are one line and exit code 2, help is quick."""

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest
from support.read_only import refuse_puts
from support.served import add_run, add_videos
from support.small_clip import write_small_clip

from prvr_ray import cli
from prvr_ray.cli.commands import COMMANDS, parameter_of
from prvr_ray.cli.help import written
from prvr_ray.collection.history import read_history
from prvr_ray.config import SECTIONS, Config
from prvr_ray.storage import open_store


@pytest.fixture
def train_settings(monkeypatch):
    """Replaces the training stage by one that keeps the settings that it was given."""
    seen = []

    def keep(config: Config, **arguments: object) -> dict[str, object]:
        seen.append(config)
        return {"videos": 3}

    put_in_place_of_train(monkeypatch, keep)
    return seen


def put_in_place_of_train(monkeypatch, call):
    monkeypatch.setitem(COMMANDS, "train", dataclasses.replace(COMMANDS["train"], call=call))


def run_train(*options: str) -> int:
    return cli.main(["train", "--root", "r", "--run", "a", *options])


def test_options_win_over_file_and_file_over_preset(train_settings, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("train: {lr: 0.5, margin: 0.6}\n")
    assert run_train("--preset", "tvr", "--config", str(file), "--train.lr", "0.75") == 0
    train = train_settings[0].train
    assert (train.lr, train.margin, train.dropout) == (0.75, 0.6, 0.2)


@pytest.mark.parametrize("name", ["a/b", "..", ""])
@pytest.mark.parametrize(
    ("command", "flag", "what"),
    [
        (["ingest", "--videos", "."], "--features", "features"),
        (["train", "--run", "run"], "--features", "features"),
        (["tune", "--study", "new"], "--features", "features"),
        (["tune"], "--study", "study"),
        (["ablate"], "--study", "study"),
        (["index", "--run", "run"], "--index", "index"),
        (["index", "--index", "i"], "--run", "run"),
        (["search", "a dog"], "--index", "index"),
    ],
)
def test_a_name_that_is_no_single_folders_is_refused_and_makes_nothing(tmp_path, capsys, command, flag, what, name):
    add_videos(tmp_path, ["a"])
    add_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([*command, flag, name, "--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"prvr: {what} {name!r} is not a name; use letters, digits, - and _\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_settings_file_may_lie_in_a_bucket(train_settings, s3_root, capsys):
    open_store(s3_root).put("tune/study/best.yaml", b"train: {lr: 0.5}")
    assert run_train("--config", f"{s3_root}/tune/study/best.yaml") == 0
    assert train_settings[0].train.lr == 0.5
    assert run_train("--config", f"{s3_root}/none.yaml") == 2
    assert capsys.readouterr().err == f"prvr: {s3_root}/none.yaml does not exist (NoSuchKey)\n"


def test_flat_spelling_is_the_same_setting(train_settings):
    assert run_train("--num-workers", "2") == 0
    assert train_settings[0].train.num_workers == 2


def test_json_is_the_last_line(train_settings, capsys):
    assert run_train("--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["videos"] == 3


def test_an_error_that_says_nothing_of_the_input_has_a_traceback_and_its_own_exit_code(monkeypatch, tmp_path, capsys):
    put_in_place_of_train(monkeypatch, lambda *_, **__: {}["a defect"])
    assert cli.main(["train", "--root", str(tmp_path), "--run", "a"]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "KeyError: 'a defect'" in said


def test_a_history_that_cannot_be_written_undoes_no_work(monkeypatch, refusing_s3, capsys):
    put_in_place_of_train(monkeypatch, lambda *_, **__: {"videos": 3, "output": "x"})
    assert cli.main(["train", "--root", refusing_s3, "--run", "a"]) == 0
    captured = capsys.readouterr()
    assert "this command could not be recorded in the history: no permission" in captured.err
    assert "3" in captured.out


def test_what_cannot_be_recorded_is_said_in_one_line_after_the_result(monkeypatch, tmp_path, capfd):
    put_in_place_of_train(monkeypatch, lambda *_, **__: {"videos": 3, "output": "x"})
    refuse_puts(monkeypatch)
    monkeypatch.setattr("sys.stderr", sys.stdout)  # one stream tells the order
    assert run_train() == 0
    *_, output, notice = capfd.readouterr().out.splitlines()
    assert output == "output: x"
    assert notice.startswith("prvr: this command could not be recorded in the history: ")


def test_status_puts_nothing(monkeypatch, tmp_path, capsys):
    add_videos(tmp_path, ["a"])
    refuse_puts(monkeypatch)
    assert cli.main(["status", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "videos.total" in said.out
    assert not said.err


def test_what_made_something_is_remembered_and_a_dry_run_is_not(monkeypatch, tmp_path):
    summaries = iter([{"videos": 3, "output": "x"}, {"videos": 5, "output": "x"}, {"videos": 7}])
    put_in_place_of_train(monkeypatch, lambda *_, **__: next(summaries))
    for options in ([], ["--dry-run"], []):
        assert cli.main(["train", "--root", str(tmp_path), "--run", "a", *options]) == 0
    [record] = read_history(open_store(tmp_path))
    assert (record["command"], record["summary"]["videos"]) == ("train", 3)
    assert record["versions"]["torch"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train.lrs", "1"], "train has train_split"),
        (["--train.lr", "-1"], "train.lr=-1.0: Input should be greater than 0"),
        (["--train.lr", "fast"], "train.lr: Expected a float. Got value: fast"),
        (["--preset", "msrvtt"], "activitynet"),
        (["--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(train_settings, capsys, options, said):
    assert run_train(*options) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not train_settings


@pytest.mark.parametrize(
    "text", ["train: {lrs: 1}", "trains: {lr: 1}", "train: 3", "[1, 2]", "train: {lr: [", "train:"]
)
def test_a_wrong_settings_file_is_one_line_and_exit_code_2(train_settings, capsys, tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert run_train("--config", str(file), "--train.margin", "0.1") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not train_settings


@pytest.mark.parametrize(
    "command",
    [
        "import --layout jsonl --source {folder}/captions.jsonl --root {root}",
        "ingest --videos {folder} --root {root} --encoder {encoder}",
        "ingest --videos {root}/videos --root {folder} --encoder {encoder}",
        "train --root {root} --run r",
        "tune --root {root} --study s",
        "index --root {root} --run r --index i",
        "score --root {root} --index i --queries test --output o",
        "evaluate --root {root} --run r --split test",
        "search --root {root} --index i text",
        "report --root {root} --run r",
        "status --root {root}",
        "verify --root {root} --index i",
        "compact --root {root}",
        "gc --root {root}",
        "remove v --root {root}",
    ],
)
def test_no_permission_on_the_bucket_is_one_line_and_exit_code_2(refusing_s3, tmp_path, capsys, command):
    (tmp_path / "captions.jsonl").write_text('{"video_id": "a.mp4", "text": "a"}\n')
    (tmp_path / "a.mp4").write_bytes(b"")
    encoder = write_small_clip(tmp_path / "encoder")[0] if "{encoder}" in command else ""
    words = command.format(folder=tmp_path, root=refusing_s3, encoder=encoder).split()
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert f"no permission for {refusing_s3}" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "required: --run, --root"),
        (["search", "--root", "r", "--index", "i"], "required: text"),
        (["search", " ", "--root", "r", "--index", "i"], "search needs a sentence"),
        ([], "which command? One of import, ingest, train,"),
        (["trane"], "invalid choice: 'trane' (choose from 'import', 'ingest', 'train',"),
        (
            ["train", "--root", "r", "--run", "a", "--student.num_heads", "5"],
            "prvr: student.num_heads=5 does not divide",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named_in_one_line(capsys, arguments, said):
    assert cli.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_help_imports_nothing_heavy():
    """One process for all commands: what one of them imports, the check after it finds."""
    probe = (
        "import sys; from prvr_ray.cli import main\n"
        "for name in ['', *sys.argv[1:]]:\n"
        "    try: main([*name.split(), '--help'])\n"
        "    except SystemExit: pass\n"
        "    heavy = {'torch', 'ray', 'av', 'open_clip', 'pyarrow', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} imported {heavy}')"
    )
    ran = subprocess.run([sys.executable, "-c", probe, *COMMANDS], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("usage: prvr") == 1 + len(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_gives_its_function_exactly_the_arguments_that_it_takes(name):
    command = COMMANDS[name]
    given = dict.fromkeys(map(parameter_of, command.options))
    inspect.signature(command.function()).bind(*command.passes, **given)


def help_of(capsys, *words):
    with pytest.raises(SystemExit):
        cli.main([*words])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.sections])
def test_help_shows_everyday_settings_and_help_all_every_one(capsys, name):
    settings = {f"{section}.{field}" for section in COMMANDS[name].sections for field in SECTIONS[section].model_fields}
    everyday = {f"{section}.{field}" for section in COMMANDS[name].sections for field in SECTIONS[section].everyday}
    shown, everything = help_of(capsys, name, "--help"), help_of(capsys, name, "--help-all")
    assert everyday <= settings
    assert {setting for setting in settings if f"  --{setting} " in shown} == everyday
    assert all(f"  --{setting} " in everything for setting in settings)
    if everyday < settings:
        assert f"{len(settings - everyday)} of {len(settings)} settings are advanced; `prvr {name} --help-all`" in shown


def test_help_of_train_shows_about_fifteen_settings(capsys):
    assert 12 <= help_of(capsys, "train", "--help").count("\n  --train.") + 3 <= 17


@pytest.mark.parametrize("words", [[], *([name, "--help-all"] for name in COMMANDS if COMMANDS[name].sections)])
def test_defaults_read_as_a_person_writes_them(capsys, words):
    shown = help_of(capsys, *(words or ["--help"]))
    for ugly in ("(default: )", "null", "None", "Literal[", "(type:", "{}", "[]", "default: True", "default: False"):
        assert ugly not in shown, ugly


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (67_108_864, "shard_bytes", "64 MiB"),
        (4 * 2**30, "decode_memory_bytes", "4 GiB"),
        (1000, "unit_bytes", "1000 bytes"),
        (2.5e-4, "lr", "0.00025"),
        (172_800.0, "max_duration_s", "172800"),
        ({"train": 0.8, "val": 0.1}, "split_shares", "train 0.8, val 0.1"),
        (["mp4", "mkv"], "extensions", "mp4, mkv"),
        (True, "filmstrips", "true"),
        (0, "limit", "0"),
        ("", "encoder", ""),
        (None, "address", ""),
        ({}, "labels", ""),
    ],
)
def test_a_default_is_written_with_its_unit(value, name, said):
    assert written(value, name) == said


def test_help_of_import_shows_the_columns_and_an_example_line_by_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["import", "--help"])
    shown = capsys.readouterr().out
    assert "\n  video_id,start_s,end_s,text\n  kitchen/a.mp4,12.5,20.1,a person opens a fridge\n" in shown
    assert "\n  query_id     default: " in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prvr", "ev"], ["evaluate"]),
        (["prvr", "train", "--train.num_e"], ["--train.num_epochs"]),
        (["prvr", "import", "--layout", "qv"], ["qvhighlights"]),
    ],
)
def test_bash_completes_commands_options_and_choices(tmp_path, capsys, words, expected):
    with pytest.raises(SystemExit):
        cli.main(["--print_completion", "shtab-bash"])
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)
    ask = (
        'source completion.sh; read -r _ _ _ _ call _ <<< "$(complete -p prvr)"; COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); $call prvr "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"'
    )
    ran = subprocess.run(["bash", "-c", ask, "bash", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ran.stdout.split(), ran.stderr) == (expected, "")
