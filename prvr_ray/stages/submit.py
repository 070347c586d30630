"""`prvr submit`: submits commands to a Ray cluster as jobs over HTTP, follows their logs, and queries or stops them.

A job's driver runs on the cluster's head node, with the `prvr` of its image or of the uploaded folder.
"""

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import ray
import requests
from ray.job_submission import JobDetails, JobSubmissionClient

_ANSWER_S = 10.0
_FAILED = 1
# These log a line for every folder that an upload skips and for every closed connection.
_TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)


def submit(arguments: list[str], *, address: str, working_dir: str | None = None, wait: bool = True) -> dict[str, Any]:
    """Run `prvr ARGUMENTS` on a cluster.

    Args:
        arguments: a command of `prvr` and its options, as the cluster's nodes understand them: paths are on the
            nodes or relative to working_dir.
        address: of the cluster's dashboard, http://HEAD:8265.
        working_dir: a folder to upload, except what .gitignore excludes; the job starts and imports there.
        wait: follow the logs until the job ends.

    Returns:
        job (its ID), status, and the job's exit_code.

    Raises:
        ValueError: the address does not answer, the Ray versions differ, the folder is missing or too large, or the
            connection was lost.
    """
    with _one_line(address):
        client = _client(address)
        job_id = client.submit_job(
            entrypoint=shlex.join(["prvr", *arguments]),
            runtime_env={"working_dir": working_dir} if working_dir else None,
        )
        print(f"submitted {job_id}; prvr submit --status {job_id} --address {address} prints its status", flush=True)
        if wait:
            _follow_until_interrupted(client, job_id, address)
        return _job_summary(client.get_job_info(job_id))


def get_job_status(job_id: str, *, address: str) -> dict[str, Any]:
    """Return a job's current status, in the form of `submit`. Raises ValueError: no such job or address."""
    with _one_line(address):
        return _job_summary(_client(address).get_job_info(job_id))


def stop_job(job_id: str, *, address: str) -> dict[str, Any]:
    """Stop a job and wait until it has ended. Raises ValueError: no such job or address."""
    with _one_line(address):
        client = _client(address)
        client.stop_job(job_id)
        while not client.get_job_status(job_id).is_terminal():
            time.sleep(0.2)
        return _job_summary(client.get_job_info(job_id)) | {"exit_code": 0}


def get_cluster_version(address: str) -> str:
    """Ask a dashboard for its cluster's Ray version. Raises ValueError: no dashboard answers at the address."""
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"address {address!r} is not a dashboard's; write http://HEAD:8265")
    try:
        answer = requests.get(f"{address.rstrip('/')}/api/version", timeout=_ANSWER_S)
        return str(answer.json()["ray_version"])
    except (requests.RequestException, ValueError, KeyError) as error:
        raise ValueError(
            f"no Ray dashboard at {address} ({type(error).__name__}); is the port 8265 forwarded?"
        ) from None


def _client(address: str) -> JobSubmissionClient:
    theirs = get_cluster_version(address)
    if theirs != ray.__version__:
        raise ValueError(
            f"the cluster at {address} runs Ray {theirs}, this program {ray.__version__}; install ray=={theirs}"
        )
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    return JobSubmissionClient(address)


def _follow_until_interrupted(client: JobSubmissionClient, job_id: str, address: str) -> None:
    """Follow a job's log; Ctrl-C stops following, not the job."""
    try:
        _follow_log(client, job_id)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{job_id} keeps running; prvr submit --stop {job_id} --address {address} stops it"
        ) from None


def _follow_log(client: JobSubmissionClient, job_id: str) -> None:
    """Print a job's log until the job has ended; after a lost connection, resume where it broke."""
    num_printed = 0
    while True:
        num_printed = asyncio.run(_print_log(client, job_id, num_printed))
        if client.get_job_status(job_id).is_terminal():
            return
        time.sleep(0.5)


async def _print_log(client: JobSubmissionClient, job_id: str, num_printed: int) -> int:
    """Print a log as it grows, without its first num_printed characters; return how many are printed now."""
    num_seen = 0
    # The next query for the job's status shows whether the cluster is gone or only the connection broke.
    with contextlib.suppress(RuntimeError, aiohttp.ClientError):
        async for text in client.tail_job_logs(job_id):
            print(text[max(0, num_printed - num_seen) :], end="", flush=True)
            num_seen += len(text)
    return max(num_printed, num_seen)


def _job_summary(details: JobDetails) -> dict[str, Any]:
    summary: dict[str, Any] = {"job": details.submission_id, "status": details.status.value}
    if not details.status.is_terminal():
        return summary
    if details.driver_exit_code is None:  # it never started, or was stopped
        return summary | {"message": details.message, "exit_code": _FAILED}
    return summary | {"exit_code": details.driver_exit_code}


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Raise Ray's errors, some of which contain the server's traceback, as one line each."""
    try:
        yield
    except (ConnectionError, requests.RequestException) as error:
        raise ValueError(
            f"lost the cluster at {address} ({type(error).__name__}); a submitted job keeps running"
        ) from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
        raise ValueError(f"the cluster at {address} refused: {lines[-1]}") from error
