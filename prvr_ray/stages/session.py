"""Starts Ray embedded, or joins a cluster, for the length of one stage."""

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator

import grpc
import ray
from ray.exceptions import RayTaskError

_EMBEDDED_STORE_BYTES = 1 * 2**30
_KNOCK_S = 5.0


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Give a stage its Ray: the one that runs already, the cluster at `address`, or a local one of its own.

    Args:
        address: of a Ray cluster (`auto`, `ray://HOST:10001`, `HOST:6379`); None starts Ray in this process's
            machine and ends it with the stage, unless a cluster's job environment names one.

    Raises:
        ValueError: nothing answers at the address.
        OSError, ValueError: a task's own: no permission, unusable input.
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
    """Raise what a worker said, where it is meant for users; Ray's own word on it is the worker's traceback."""
    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, (OSError, ValueError)) else error) from None


def _start(address: str | None) -> None:
    if address:
        _join(address)
        return
    try:
        _start_here()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Ray does not start on this machine: {' '.join(str(error).split())}") from error


def _start_here() -> None:
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=int(os.environ.get("PRVR_OBJECT_STORE_BYTES", _EMBEDDED_STORE_BYTES)),
    )


def _join(address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except OSError as error:
        raise ValueError(f"no Ray cluster at {address!r}: {error}") from error
    except RuntimeError as error:  # such as another version of Ray or Python
        raise ValueError(f"cannot join the Ray cluster at {address!r}: {' '.join(str(error).split())}") from error


def _knock(address: str) -> None:
    """Fail soon where nothing listens, or something that is not Ray: Ray itself tries for minutes."""
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
            raise ConnectionError("what answers there is not Ray; its own port is 6379, Ray Client's 10001") from None


def _quiet() -> None:
    """Ray's own progress bars and start-up notices give way to ours."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_WARNINGS", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # a short run needs fewer
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # a local token
