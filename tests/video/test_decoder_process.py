"""The decoder's child process: whatever a file does to it, the parent gets frames or a failure; nothing is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.leftovers import decoding_children, end_decoding_children, open_pipes_and_files
from support.rendering import read_number, render

from prvr_ray.video.container import Limits
from prvr_ray.video.decoder_process import VideoDecoder
from prvr_ray.video.errors import PERMANENT, TRANSIENT, VideoError
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments

SPECS = [FrameSpec((36, 48), "squash"), FrameSpec((24, 24))]
LIMITS = Limits()


@pytest.fixture
def decoder():
    with VideoDecoder(timeout_s=60, stall_s=30) as decoder:
        yield decoder


@pytest.fixture(autouse=True)
def _nothing_is_left_over():
    end_decoding_children()
    before = open_pipes_and_files()
    yield
    assert decoding_children() == []
    assert open_pipes_and_files() <= before


def decode(decoder, path, sampling=None, limits=LIMITS, **options):
    return list(decoder.segments(str(path), sampling or Sampling(), SPECS, limits, **options))


def failure(decoder, path, **options):
    with pytest.raises(VideoError) as raised:
        decode(decoder, path, **options)
    return raised.value


def child_that(code):
    """A decoder of which the child runs `code` when it has read its request."""
    return VideoDecoder(
        timeout_s=5, stall_s=1, command=(sys.executable, "-c", f"import os, sys, time; input(); {code}")
    )


def test_child_gives_what_decoding_here_gives(decoder, tmp_path):
    path = render(tmp_path / "video.mkv", 60, fps=10)
    sampling = Sampling(fps=3, segment_frames=7)
    there = decode(decoder, path, sampling, skip=[1])
    here = list(read_segments(str(path), sampling, SPECS, LIMITS, skip=[1]))
    assert [segment.index for segment in there] == [0, 2]
    for a, b in zip(there, here, strict=True):
        assert (a.is_last, a.start_s, a.duration_s, a.decoded_share) == (
            b.is_last, b.start_s, b.duration_s, b.decoded_share
        )  # fmt: skip
        assert np.array_equal(a.timestamps_s, b.timestamps_s)
        assert all(np.array_equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))


def test_one_child_serves_many_files(decoder, tmp_path):
    good, bad = render(tmp_path / "video.mp4", 10), tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing of the kind")
    children = set()
    for _ in range(3):
        assert len(decode(decoder, good)) == 1
        assert failure(decoder, bad).error_class == "decode"
        children |= {child.pid for child in decoding_children()}
    assert len(children) == 1


def test_a_file_that_hangs_is_a_timeout(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it blocks for ever
    with VideoDecoder(timeout_s=60, stall_s=3) as decoder:
        begun = time.monotonic()
        assert failure(decoder, tmp_path / "pipe.mp4").error_class == "timeout"
        assert time.monotonic() - begun < 20
        assert len(decode(decoder, render(tmp_path / "video.mp4", 10))) == 1


def test_an_endless_file_is_a_timeout(tmp_path):
    packets = render(tmp_path / "video.ts", 30).read_bytes()
    pipe = tmp_path / "endless.ts"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_for_ever, args=(pipe, packets))
    writer.start()
    with VideoDecoder(timeout_s=2, stall_s=30) as decoder:
        assert failure(decoder, pipe).error_class == "timeout"
    writer.join(timeout=10)
    assert not writer.is_alive()


def write_for_ever(pipe, packets):
    try:
        with open(pipe, "wb") as stream:
            while True:
                stream.write(packets)
    except BrokenPipeError:
        return


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        ("os.kill(os.getpid(), 11)", "decoder_crash"),
        ("os.abort()", "decoder_crash"),
        ("sys.exit(3)", "decoder_crash"),
        ("os.kill(os.getpid(), 9)", "out_of_memory"),  # what the kernel does to the largest process
        ("time.sleep(60)", "timeout"),
        ("os.write(1, b'ab'); time.sleep(60)", "timeout"),
    ],
)
def test_a_child_that_dies_or_hangs_is_one_failure(tmp_path, code, error_class):
    with child_that(code) as decoder:
        error = failure(decoder, tmp_path / "video.mp4")
        assert error.error_class == error_class
        assert failure(decoder, tmp_path / "video.mp4").error_class == error_class  # and it is started anew


def test_a_long_way_to_the_first_wanted_segment_is_no_timeout(tmp_path):
    """The child decodes three segments in 0.8 s each that nobody wants; one alone may take 2 s."""
    code = """
import json, struct
for kind in ("passed", "passed", "passed", "end"):
    time.sleep(0.8)
    data = json.dumps({"kind": kind}).encode()
    os.write(1, struct.pack("<I", len(data)) + data)
sys.stdin.read()
"""
    command = (sys.executable, "-c", f"import os, sys, time; input()\n{code}")
    with VideoDecoder(timeout_s=2, stall_s=20, command=command) as decoder:
        assert decode(decoder, tmp_path / "video.mp4") == []


def test_the_child_says_when_it_has_decoded_as_much_as_a_segment(tmp_path):
    path = render(tmp_path / "v.mp4", 400, fps=10, gop=400)
    decoded_s = []

    def beat(seconds=0.0):
        decoded_s.append(seconds)

    segments = read_segments(str(path), Sampling(segment_frames=5), SPECS, LIMITS, range(7), beat)
    assert next(segments).index == 7
    assert sum(decoded_s) >= 35


def test_every_class_is_either_transient_or_permanent():
    assert not set(TRANSIENT) & set(PERMANENT)
    assert set(TRANSIENT) == {"download", "out_of_memory"}
    assert {"decode", "no_video_stream", "empty", "timeout", "decoder_crash", "too_large"} <= set(PERMANENT)


def test_memory_beyond_the_limit_is_a_failure_and_the_next_file_is_decoded(tmp_path):
    large = render(tmp_path / "large.mp4", 3, fps=1, height=2160, width=3840)
    with VideoDecoder(memory_bytes=40 * 2**20) as decoder:
        assert failure(decoder, large).error_class == "out_of_memory"
        assert len(decode(decoder, render(tmp_path / "small.mp4", 10))) == 1


def test_a_decompression_bomb_is_too_large(decoder, tmp_path):
    path = render(tmp_path / "video.mkv", 2, height=512, width=512)
    error = failure(decoder, path, limits=Limits(max_pixels=512 * 511))
    assert error.error_class == "too_large"
    assert "512x512" in str(error)


def test_a_picture_that_grows_when_resized_is_too_large(decoder, tmp_path):
    path = render(tmp_path / "ribbon.mkv", 2, height=4, width=4000)
    error = failure(decoder, path, limits=Limits(max_pixels=24 * 20_000))
    assert error.error_class == "too_large"


def test_a_file_longer_than_the_limit_is_too_large(decoder, tmp_path):
    path = render(tmp_path / "long.mp4", 30, fps=1)
    assert failure(decoder, path, limits=Limits(max_duration_s=29)).error_class == "too_large"


def test_a_caller_that_wants_no_more_leaves_no_child_at_work(decoder, tmp_path):
    path = render(tmp_path / "video.mp4", 100)
    segments = decoder.segments(str(path), Sampling(segment_frames=2), SPECS, LIMITS)
    next(segments)
    segments.close()
    assert decoding_children() == []
    assert len(decode(decoder, path)) == 1


def test_the_child_ends_with_its_parent_even_while_it_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    code = (
        "import sys; from prvr_ray.video.decoder_process import *; "
        "list(VideoDecoder().segments(sys.argv[1], Sampling(), [], Limits()))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pipe.mp4")])
    child = wait_for(lambda: psutil.Process(parent.pid).children())[0]
    wait_for(lambda: child.num_threads() > 1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return value


def test_the_child_gets_no_credentials(decoder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    decode(decoder, render(tmp_path / "video.mp4", 3))
    (child,) = decoding_children()
    assert "s3cret" not in str(child.environ())
    assert set(child.environ()) <= {"PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "MALLOC_ARENA_MAX",
                                    "OPENBLAS_NUM_THREADS", "LC_CTYPE"}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{file}'\n",
        "ffconcat version 1.0\nfile '{url}/a.mp4'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD><Period><AdaptationSet mimeType="video/mp4"><BaseURL>{url}/</BaseURL>'
        "</AdaptationSet></Period></MPD>",
    ],
    ids=["playlist", "concat-file", "concat-url", "sdp", "dash"],
)
@pytest.mark.parametrize("suffix", ["mp4", "ts", "m3u8"])
def test_a_file_that_names_other_files_leads_nowhere(decoder, tmp_path, content, suffix):
    neighbour = render(tmp_path / "neighbour.mp4", 5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        path = tmp_path / f"video.{suffix}"
        path.write_text(content.format(url=f"http://127.0.0.1:{port}", file=neighbour, port=port))
        assert failure(decoder, path).error_class in ("decode", "no_video_stream", "empty")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "name",
    [
        "-i.mp4", "--help.mp4", "two  spaces.mp4", "it's \"quoted\".mp4", "a;rm -rf $HOME.mp4", "ümläut 日本 🎬.mp4",
        "100%d_%s.mp4", "http:evil.mp4", "concat:a.mp4|b.mp4", "new\nline.mp4", "back\\slash.mp4", "..mp4", "*?.mp4",
        b"latin-\xe9.mp4",
    ],
)  # fmt: skip
def test_names_are_data(decoder, tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    render(tmp_path / "plain.mp4", 10).rename(path)
    (segment,) = decode(decoder, path)
    assert read_number(segment.frames[0][0]) == 0
    monkey = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert len(decode(decoder, Path(path.name))) == 1  # a relative path is no option either
    finally:
        os.chdir(monkey)


def test_failures_travel_as_json_without_the_path(decoder, tmp_path):
    (tmp_path / "secret-folder").mkdir()
    path = tmp_path / "secret-folder/bad.mp4"
    path.write_bytes(os.urandom(2000))
    error = failure(decoder, path)
    assert "secret-folder" not in json.dumps([error.error_class, str(error)])
