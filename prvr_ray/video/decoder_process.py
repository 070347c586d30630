"""Decodes in a child process that serves many videos and can be killed. A codec may hang, crash or exhaust memory;
that must cost one video and no more.

The child is a fresh Python (`python -m prvr_ray.video.decoder_process`), never a fork. It reads one JSON request per
line and answers with messages: four bytes of length, a JSON header, and for a segment its arrays as raw bytes. When
the parent exits, the child's standard input closes and it exits too. It gets none of the parent's credentials.
"""

import contextlib
import fcntl
import json
import os
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from prvr_ray.video.container import Limits
from prvr_ray.video.errors import VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import Segment, read_segments

_COMMAND = (sys.executable, "-P", "-m", "prvr_ray.video.decoder_process")
_BEAT_S = 0.5
_PIPE_BYTES = 2**20
_LENGTH = struct.Struct("<I")


class VideoDecoder:
    """The parent's side: one child process, started when it is first needed and again after it has died."""

    def __init__(
        self,
        *,
        timeout_s: float = 600.0,
        stall_s: float = 60.0,
        memory_bytes: int = 4 * 2**30,
        command: Sequence[str] = _COMMAND,
    ):
        """
        Args:
            timeout_s: for one segment, also one that is only decoded on the way to another, and for reading a file's
                packets.
            stall_s: heartbeat timeout; the child sends two a second.
            memory_bytes: what the child may allocate on top of what it needs to start.
            command: what to run instead of the decoder, for tests of its death.
        """
        self._timeout_s, self._stall_s = timeout_s, stall_s
        self._command = (*command, str(memory_bytes))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def segments(
        self,
        path: str,
        sampling: Sampling,
        specs: Sequence[FrameSpec],
        limits: Limits,
        skip: Collection[int] = (),
    ) -> Iterator[Segment]:
        """What `read_segments` yields and raises, from the child.

        Raises:
            VideoError: also timeout, out_of_memory, decoder_crash; the child is replaced then.
        """
        request = {
            "path": os.path.abspath(path),
            "sampling": asdict(sampling),
            "specs": [asdict(spec) for spec in specs],
            "limits": asdict(limits),
            "skip": sorted(skip),
        }
        is_finished = False
        try:
            self._send(request)
            while (segment := self._receive()) is not None:
                yield segment
            is_finished = True
        except VideoError as error:
            is_finished = error.error_class not in ("timeout", "out_of_memory", "decoder_crash")
            raise
        finally:
            if not is_finished:  # also when the caller stops early: the child is still decoding
                self.close()

    def close(self) -> None:
        """Kill the child, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with process:  # closes the pipes and waits
            pass

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None:
            self._process = _start_child(self._command)
        with contextlib.suppress(BrokenPipeError):  # the child has just died; reading its answer reports that
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _receive(self) -> Segment | None:
        """The next segment, or None at the end of the video."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
            header = json.loads(bytes(self._read(length, deadline)))
            match header["kind"]:
                case "segment":
                    return self._read_segment(header, deadline)
                case "error":
                    raise VideoError(header["error_class"], header["message"])
                case "passed":  # as much as a segment has been decoded, though none of its frames may be wanted
                    deadline = time.monotonic() + self._timeout_s
                case "end":
                    return None

    def _read_segment(self, header: dict[str, Any], deadline: float) -> Segment:
        times_s = np.frombuffer(self._read(8 * header["num_frames"], deadline), "<f8")
        frames = []
        for height, width in header["image_sizes"]:
            shape = header["num_frames"], 3, height, width
            frames.append(np.frombuffer(self._read(int(np.prod(shape)), deadline), np.uint8).reshape(shape))
        return Segment(timestamps_s=times_s, frames=frames, **header["fields"])

    def _read(self, size: int, deadline: float) -> bytearray:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            wait_s = min(self._stall_s, deadline - time.monotonic())
            if wait_s <= 0 or not poll.poll(wait_s * 1000):
                raise VideoError("timeout", self._overdue(deadline))
            num_bytes = os.readv(descriptor, [rest])
            if not num_bytes:
                raise self._death()
            rest = rest[num_bytes:]
        return data

    def _overdue(self, deadline: float) -> str:
        if time.monotonic() >= deadline:
            return f"one segment took longer than ingest.decode_timeout_s={self._timeout_s:g}"
        return f"no progress for ingest.decode_stall_s={self._stall_s:g}"

    def _death(self) -> VideoError:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return VideoError("out_of_memory", "the decoder was killed by SIGKILL, most likely for its memory")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return VideoError("decoder_crash", f"the decoder died: {cause}")


def _start_child(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    package_home = str(Path(__file__).parents[2])
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    environment |= {"PYTHONPATH": package_home, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    with contextlib.suppress(OSError, AttributeError):  # a large pipe is faster; not every system has one
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]
    return process


def _main() -> None:
    """The child's side: answer requests until standard input ends."""
    memory_bytes = int(sys.argv[1])
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # keep what codecs print out of the messages
    _limit_memory(memory_bytes)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_watch_input, args=(requests,), daemon=True).start()
    while True:
        _serve_request(json.loads(requests.get()), output)


def _watch_input(requests: "queue.SimpleQueue[bytes]") -> None:
    """Pass requests on; exit as soon as the parent is gone, even while a decoder hangs."""
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


def _limit_memory(memory_bytes: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # where there is no /proc, or a lower limit stands
        own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (own_bytes + memory_bytes,) * 2)


def _serve_request(request: dict[str, Any], output: BinaryIO) -> None:
    specs = [FrameSpec(**{**spec, "image_size": tuple(spec["image_size"])}) for spec in request["specs"]]
    try:
        for segment in read_segments(
            request["path"],
            Sampling(**request["sampling"]),
            specs,
            Limits(**request["limits"]),
            skip=frozenset(request["skip"]),
            beat=_Heartbeat(output, request["sampling"]["segment_frames"] / request["sampling"]["fps"]),
        ):
            _send_segment(segment, specs, output)
        _send({"kind": "end"}, output)
    except VideoError as error:
        _send_error(error.error_class, str(error), output)
    except MemoryError:
        _send_error("out_of_memory", "the file asks for more than ingest.decode_memory_bytes", output)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:  # a damaged file may raise anything; the parent must hear of it
        _send_error("decoder_crash", f"{type(error).__name__}: {error}", output)


class _Heartbeat:
    """Sends the parent two heartbeats a second, and a message per segment length decoded."""

    def __init__(self, output: BinaryIO, segment_s: float):
        self._output, self._next = output, time.monotonic() + _BEAT_S
        self._segment_s, self._decoded_s = segment_s, 0.0

    def __call__(self, decoded_s: float = 0.0) -> None:
        self._decoded_s += decoded_s
        if self._decoded_s >= self._segment_s:
            self._decoded_s = 0.0
            _send({"kind": "passed"}, self._output)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _BEAT_S
            _send({"kind": "beat"}, self._output)


def _send_segment(segment: Segment, specs: Sequence[FrameSpec], output: BinaryIO) -> None:
    fields = {
        "index": segment.index,
        "is_last": segment.is_last,
        "start_s": segment.start_s,
        "duration_s": segment.duration_s,
        "decoded_share": segment.decoded_share,
        "warnings": segment.warnings,
    }
    header = {
        "kind": "segment",
        "num_frames": len(segment.timestamps_s),
        "image_sizes": [spec.image_size for spec in specs],
        "fields": fields,
    }
    _send(header, output)
    for values in (segment.timestamps_s.astype("<f8"), *segment.frames):
        _write(output, values.reshape(-1).view(np.uint8).data)  # no copy: a segment is the largest thing here


def _send_error(error_class: str, message: str, output: BinaryIO) -> None:
    _send({"kind": "error", "error_class": error_class, "message": message[:500]}, output)


def _send(header: dict[str, Any], output: BinaryIO) -> None:
    data = json.dumps(header).encode()
    _write(output, memoryview(_LENGTH.pack(len(data)) + data))


def _write(output: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[output.write(data) :]


if __name__ == "__main__":
    _main()
