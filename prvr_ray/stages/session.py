"""Starts Ray embedded, or joins a cluster, for the length of one stage."""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator

import grpc
import ray
from ray.exceptions import RayTaskError

from prvr_ray.devices import count_cpus

_EMBEDDED_STORE_BYTES = 1 * 2**30
_KNOCK_S = 5.0


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Connect a stage to Ray: the running session, the cluster at `address`, or a new local one.

    Args:
        address: of a Ray cluster (`auto`, `ray://HOST:10001`, `HOST:6379`). None: the cluster in RAY_ADDRESS, as in a
            cluster's job; otherwise Ray starts on this machine and stops with the stage.

    Raises:
        ValueError: no cluster answers at the address.
        OSError, ValueError: raised by a task, such as no permission or unusable input.
    """
    _quiet()
    if ray.is_initialized():
        with _workers_own_errors():
            yield
        return
    _start(address or os.environ.get("RAY_ADDRESS"))
    try:
        with _workers_own_errors():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _workers_own_errors() -> Iterator[None]:
    """Raise the worker's own error if it is meant for users, instead of Ray's, whose message is a traceback."""
    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, (OSError, ValueError)) else error) from None


@contextlib.contextmanager
def hide_core_log() -> Iterator[None]:
    """Keep the lines that Ray's C++ core prints while it starts (logging.cc) from standard error; pass on all others.

    If configured to log less, the core first prints a line about that to the process's standard error.
    """
    if sys.stderr is None:  # the process has none, as in `prvr ... 2>&-`
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            os.write(2, b"".join(line for line in kept if b" logging.cc:" not in line))


def _start(address: str | None) -> None:
    with hide_core_log():
        _start_or_join(address)


def _start_or_join(address: str | None) -> None:
    if address:
        _join_cluster(address)
        return
    try:
        _start_here()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Ray cannot start on this machine: {' '.join(str(error).split())}") from error


def _start_here() -> None:
    ray.init(
        address="local",
        num_cpus=count_cpus(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=int(os.environ.get("PRVR_OBJECT_STORE_BYTES", _EMBEDDED_STORE_BYTES)),
    )


def _join_cluster(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except OSError as error:
        raise ValueError(f"no Ray cluster at {address!r}: {error}") from error
    except RuntimeError as error:  # such as another version of Ray or Python
        raise ValueError(f"cannot join the Ray cluster at {address!r}: {' '.join(str(error).split())}") from error


def _knock(address: str) -> None:
    """Fail early if nothing listens at the address, or something other than Ray: Ray itself retries for minutes."""
    if address.startswith(("http://", "https://")):
        raise ConnectionError("this is a dashboard; `prvr submit COMMAND --address` sends jobs to it")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
        _expect_grpc(f"{host}:{port}")


def _expect_grpc(address: str) -> None:
    if os.environ.get("RAY_USE_TLS"):
        return
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_KNOCK_S)
        except grpc.FutureTimeoutError:
            raise ConnectionError("the server there is not Ray, whose port is 6379, or 10001 for Ray Client") from None


def _quiet() -> None:
    """Keep Ray's progress bars, start-up notices and C++ logs out of the user's terminal."""
    # Ray's core prints an error for every actor that Ray Data starts (core_worker.cc: "constructor arguments in the
    # object store"). It is harmless: Ray Data, not Ray, restarts such actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_WARNINGS", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # harmless: short jobs need fewer
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # notices about a local token
