"""A cloud's metadata service of our own, and cluster/spot_notice.py that asks it."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "cluster/spot_notice.py"


@dataclass(frozen=True)
class Metadata:
    """The service's URL; once `told` is set it says that the machine is about to go."""

    url: str
    told: threading.Event


@contextlib.contextmanager
def metadata_service() -> Iterator[Metadata]:
    """Answers as the services of AWS and Google Cloud do."""
    told = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(200, "token")

        def do_GET(self) -> None:
            if self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
                self._answer(200, "TRUE" if told.is_set() else "FALSE")
            elif self.path.endswith("/spot/instance-action") and self.headers["X-aws-ec2-metadata-token"] == "token":
                self._answer(200 if told.is_set() else 404, "{}")
            else:
                self._answer(400, "")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Metadata(f"http://127.0.0.1:{server.server_port}", told)
        server.shutdown()


@contextlib.contextmanager
def watching(cloud: str, url: str, path: Path, *options: str) -> Iterator[subprocess.Popen]:
    """The script as it runs beside Ray; path: the folder of the program `ray`."""
    environment = {**os.environ, "METADATA_URL": url, "PATH": f"{path}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, SCRIPT, cloud, *options], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
