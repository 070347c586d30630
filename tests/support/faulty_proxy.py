"""A proxy before an S3 server that answers some requests with 503, and cuts the connection in the middle of others."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Faults:
    """What the proxy does to how many of the requests, and what it has done. after: the request was carried out.

    Every `deck` requests get exactly these fractions, in random order, so that no kind is missing by chance.
    """

    busy: float = 0.05
    cut_before: float = 0.02
    cut_after: float = 0.03
    deck: int = 100
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    counts: Counter = field(default_factory=Counter)
    dealt: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> str:
        with self.lock:
            if not self.dealt:
                counts = {kind: round(getattr(self, kind) * self.deck) for kind in ("busy", "cut_before", "cut_after")}
                self.dealt = [kind for kind, count in counts.items() for _ in range(count)]
                self.dealt += ["none"] * (self.deck - len(self.dealt))
                self.dice.shuffle(self.dealt)
            kind = self.dealt.pop()
            self.counts[kind] += 1
            return kind


@contextmanager
def faulty_proxy(server_url: str, faults: Faults) -> Iterator[str]:
    """URL of the proxy."""
    target = urlsplit(server_url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.next()
            if fault == "busy":
                self.answer(503, [("Content-Type", "application/xml")], _BUSY)
                return
            if fault == "cut_before":
                self.close_connection = True
                return
            connection = HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            connection.close()
            if fault == "cut_after":
                self.cut(response.status, content)
                return
            self.answer(response.status, response.getheaders(), content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            length = dict(headers).get("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def cut(self, status: int, content: bytes) -> None:
            """Promise everything, send half."""
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(content) + 1))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
