"""Sends commands to a Ray cluster as jobs over HTTP, follows their logs, asks for their state and ends them.

The job's driver runs on the cluster's head node, with the `prvr` of its image or of the folder that is uploaded.
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
# One line for every folder that an upload leaves out, and one for every connection that closes.
_TALKATIVE = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)


def submit(arguments: list[str], *, address: str, working_dir: str | None = None, wait: bool = True) -> dict[str, Any]:
    """Run `prvr ARGUMENTS` on a cluster.

    Args:
        arguments: a command of `prvr` and its options, as the cluster's nodes understand them: a path is one of theirs,
            or relative to working_dir.
        address: of the cluster's dashboard, http://HEAD:8265.
        working_dir: a folder to upload (what .gitignore names stays out); the job starts there and imports from there.
        wait: follow the logs until the job ends.

    Returns:
        job (its id), status, and as exit_code the job's own.

    Raises:
        ValueError: no such address, another Ray version, a folder that is missing or too large, or a lost connection.
    """
    with _one_line(address):
        client = _client(address)
        job_id = client.submit_job(
            entrypoint=shlex.join(["prvr", *arguments]),
            runtime_env={"working_dir": working_dir} if working_dir else None,
        )
        print(f"submitted {job_id}; prvr submit --status {job_id} --address {address} tells how it is", flush=True)
        if wait:
            _follow_until_interrupted(client, job_id, address)
        return _summary(client.get_job_info(job_id))


def job_status(job_id: str, *, address: str) -> dict[str, Any]:
    """What `submit` returned, as it is now. Raises ValueError: no such job or address."""
    with _one_line(address):
        return _summary(_client(address).get_job_info(job_id))


def stop_job(job_id: str, *, address: str) -> dict[str, Any]:
    """Ask a job to end, and wait until it has. Raises ValueError: no such job or address."""
    with _one_line(address):
        client = _client(address)
        client.stop_job(job_id)
        while not client.get_job_status(job_id).is_terminal():
            time.sleep(0.2)
        return _summary(client.get_job_info(job_id)) | {"exit_code": 0}


def cluster_version(address: str) -> str:
    """Ray's version on the cluster whose dashboard is at the address. Raises ValueError: nothing answers there."""
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"address {address!r} is not that of a dashboard; write http://HEAD:8265")
    try:
        answer = requests.get(f"{address.rstrip('/')}/api/version", timeout=_ANSWER_S)
        return str(answer.json()["ray_version"])
    except (requests.RequestException, ValueError, KeyError) as error:
        raise ValueError(
            f"no Ray dashboard at {address} ({type(error).__name__}); is the port 8265 forwarded?"
        ) from None


def _client(address: str) -> JobSubmissionClient:
    theirs = cluster_version(address)
    if theirs != ray.__version__:
        raise ValueError(
            f"the cluster at {address} runs Ray {theirs}, this program {ray.__version__}; install ray=={theirs}"
        )
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    return JobSubmissionClient(address)


def _follow_until_interrupted(client: JobSubmissionClient, job_id: str, address: str) -> None:
    """Follow a job's log; Ctrl-C ends the following, not the job."""
    try:
        _follow(client, job_id)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{job_id} goes on; prvr submit --stop {job_id} --address {address} ends it") from None


def _follow(client: JobSubmissionClient, job_id: str) -> None:
    """Print a job's log until the job has ended; a connection that breaks is opened again where it broke."""
    num_printed = 0
    while True:
        num_printed = asyncio.run(_print_log(client, job_id, num_printed))
        if client.get_job_status(job_id).is_terminal():
            return
        time.sleep(0.5)


async def _print_log(client: JobSubmissionClient, job_id: str, num_printed: int) -> int:
    """Print a log without its first num_printed characters, as it grows; return how many characters that makes."""
    num_seen = 0
    # What a broken connection means, the question for the job's status tells: nothing, or that the cluster is gone.
    with contextlib.suppress(RuntimeError, aiohttp.ClientError):
        async for text in client.tail_job_logs(job_id):
            print(text[max(0, num_printed - num_seen) :], end="", flush=True)
            num_seen += len(text)
    return max(num_printed, num_seen)


def _summary(details: JobDetails) -> dict[str, Any]:
    summary: dict[str, Any] = {"job": details.submission_id, "status": details.status.value}
    if not details.status.is_terminal():
        return summary
    if details.driver_exit_code is None:  # it did not come to run, or was stopped
        return summary | {"message": details.message, "exit_code": _FAILED}
    return summary | {"exit_code": details.driver_exit_code}


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Ray's errors, some of which carry the server's traceback, as one line each."""
    try:
        yield
    except (ConnectionError, requests.RequestException) as error:
        raise ValueError(f"lost the cluster at {address} ({type(error).__name__}); a job there goes on") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
        raise ValueError(f"the cluster at {address} refused: {lines[-1]}") from error
