"""What tests share: the folder of real files, an S3 server on loopback, and one small embedded Ray."""

import http.server
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ports import free_port

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PRVR_QUIET"] = "1"
os.environ.setdefault("PRVR_OBJECT_STORE_BYTES", str(256 * 2**20))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Slow tests begin before PRVR_SLOW_UNTIL, in seconds since the epoch, or not at all."""
    until = float(os.environ.get("PRVR_SLOW_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip(f"left out of a run on a slow machine: {item.nodeid}")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real files (videos/, annotations/, kuberay/) that PRVR_TEST_DATA names."""
    folder = os.environ.get("PRVR_TEST_DATA")
    if not folder:
        pytest.skip("PRVR_TEST_DATA does not name a folder of real test files")
    return Path(folder)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server that lives as long as the tests; its credentials are in the environment."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def s3_root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URI, s3://BUCKET/collection, in a fresh bucket of the test server; AWS variables point there."""
    import boto3

    from prvr_ray.storage import s3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3._s3_client.cache_clear()
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/collection"


@pytest.fixture
def refusing_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URI, s3://BUCKET/collection, of a server that refuses whatever is asked; AWS variables point there."""
    from prvr_ray.storage import s3

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refuse) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3._s3_client.cache_clear()
        yield "s3://forbidden/collection"
        server.shutdown()
    s3._s3_client.cache_clear()


class _Refuse(http.server.BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _refuse

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One embedded Ray of two CPUs for all tests that need no cluster of their own."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=int(os.environ["PRVR_OBJECT_STORE_BYTES"]),
    )
    yield
    ray.shutdown()


def _wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(200):
        if server.poll() is not None:
            raise RuntimeError(f"the S3 test server ended with {server.returncode}")
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"no S3 test server at {url}")
