"""`prvr submit` against a head with its dashboard, over HTTP."""

import http.server
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient
from support.clusters import BIN, Head, running_head
from support.served import add_run, add_videos

from prvr_ray import cli
from prvr_ray.stages import submit as stage
from prvr_ray.stages.submit import get_job_status, stop_job, submit

REPOSITORY = Path(__file__).parents[2]
MOST_UPLOAD_BYTES = 16 * 2**20  # stands for Ray's 500 MiB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(environment={"RAY_max_grpc_message_size": str(MOST_UPLOAD_BYTES)}) as running:
        yield running


@pytest.fixture
def other_version() -> Iterator[str]:
    """The address of a dashboard of another Ray."""

    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": "2.9.0"}).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_log_is_followed_and_the_exit_code_is_the_jobs(head, tmp_path, capfd):
    """Arguments are no shell commands; options of submit itself may stand behind the command."""
    done = submit(["compact", "--help"], address=head.dashboard)
    assert (done["status"], done["exit_code"]) == ("SUCCEEDED", 0)
    assert "--json" in capfd.readouterr().out

    intruder = tmp_path / "intruder"
    root = f"{tmp_path}/it's; touch {intruder} $(touch {intruder})"
    assert cli.main(["submit", "status", "--root", root, "--address", head.dashboard]) == 2
    assert f"no collection at {root}" in " ".join(capfd.readouterr().out.split())
    assert not intruder.exists()


def test_a_job_that_is_not_waited_for_can_be_asked_for_and_stopped(head, tmp_path):
    begun = time.monotonic()
    job = JobSubmissionClient(head.dashboard).submit_job(entrypoint="sleep 600")
    assert get_job_status(job, address=head.dashboard)["status"] in ("PENDING", "RUNNING")
    assert stop_job(job, address=head.dashboard)["status"] == "STOPPED"
    assert get_job_status(job, address=head.dashboard)["exit_code"] == 1
    unwaited = submit(["compact", "--help"], address=head.dashboard, wait=False)
    assert "exit_code" not in unwaited
    assert time.monotonic() - begun < 20


def test_ctrl_c_ends_the_following_and_says_that_the_job_goes_on(head, capfd, monkeypatch):
    def interrupted(client, job_id):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_follow_log", interrupted)
    assert cli.main(["submit", "compact", "--help", "--address", head.dashboard]) == 130
    output = capfd.readouterr()
    job = output.out.split()[1].rstrip(";")
    assert (
        output.err.strip()
        == f"interrupted; {job} keeps running; prvr submit --stop {job} --address {head.dashboard} stops it"
    )


def test_a_script_of_jobs_runs_from_an_uploaded_working_directory(head, tmp_path):
    """The command that its docstring shows, with Ray's own client; the uploaded code runs, not the installed one."""
    for part in ("jobs", "prvr_ray"):
        shutil.copytree(REPOSITORY / part, tmp_path / part)
    (tmp_path / "prvr_ray/cli/main.py").write_text(
        "def main(arguments):\n    print('uploaded', arguments)\n    return 7\n"
    )
    command = [BIN / "ray", "job", "submit", "--address", head.dashboard, "--working-dir", tmp_path, "--"]
    job = subprocess.run(
        [*command, "python", "jobs/score.py", "--top-k", "3"], capture_output=True, text=True, timeout=120
    )
    assert "uploaded ['score', '--top-k', '3']" in job.stdout
    assert "exit code 7" in job.stdout + job.stderr


def test_a_submitted_working_directory_comes_before_the_image(head, tmp_path, capfd):
    shutil.copytree(REPOSITORY / "prvr_ray", tmp_path / "prvr_ray")
    (tmp_path / "prvr_ray/cli/main.py").write_text("def main():\n    print('uploaded')\n    return 0\n")
    assert submit(["compact"], address=head.dashboard, working_dir=str(tmp_path))["exit_code"] == 0
    assert "uploaded" in capfd.readouterr().out


def test_bad_input_is_one_clear_line(head, tmp_path, other_version, capsys):
    (tmp_path / "large.bin").write_bytes(random.Random(0).randbytes(MOST_UPLOAD_BYTES + 2**20))
    compact = ["compact", "--root", "/nowhere"]
    for arguments, expected in [
        (["--address", "http://127.0.0.1:9", *compact], "no Ray dashboard at http://127.0.0.1:9"),
        (["--address", "ray://127.0.0.1:9", *compact], "write http://HEAD:8265"),
        (["--address", other_version, *compact], "runs Ray 2.9.0, this program"),
        (["--address", head.dashboard, "--working-dir", str(tmp_path / "no"), *compact], f"{tmp_path}/no"),
        (["--address", head.dashboard, "--working-dir", str(tmp_path), *compact], "exceeds the maximum size"),
        (["--address", head.dashboard, "--status", "unknown"], "unknown does not exist"),
        (["--address", head.dashboard, "compute"], "one of import, ingest"),
        (compact, "submit needs --address, the address of the dashboard"),
    ]:
        assert cli.main(["submit", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert expected in lines[0]


# In a process of its own, for this one may have a Ray already: a line of JSON for every command, [exit code, its line].
IN_TURN = """
import contextlib, io, json, sys
import ray
from prvr_ray.cli import main

def run(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["index", "--root", sys.argv[1], "--run", "run", "--index", "i", *arguments])
    print(json.dumps([code, said.getvalue()]))

for address in sys.argv[3:]:
    run("--address", address)
run("--address", sys.argv[2], "--index.indexer_gpus", "1")
ray.__version__ = "2.9.0"
run("--address", sys.argv[2])
"""


def test_a_cluster_that_cannot_be_joined_or_has_no_gpus_is_one_clear_line_and_exit_code_2(head, tmp_path):
    add_videos(tmp_path, ["v0"])
    add_run(tmp_path)
    wrong = {
        "127.0.0.1:9": "no Ray cluster at '127.0.0.1:9': [Errno 111] Connection refused",
        "no-such-host.invalid:6379": "no Ray cluster at 'no-such-host.invalid:6379'",
        head.dashboard: "this is a dashboard; `prvr submit COMMAND --address` sends jobs to it",
        head.dashboard.removeprefix("http://"): "the server there is not Ray",
    }
    command = [sys.executable, "-c", IN_TURN, tmp_path, head.address, *wrong]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    no_gpus, other_ray = "no node has 1 GPU (at most 0), and it has no autoscaler", "Version mismatch"
    for (code, said), expected in zip(answers, [*wrong.values(), no_gpus, other_ray], strict=True):
        assert code == 2
        (line,) = said.strip().splitlines()
        assert expected in line
