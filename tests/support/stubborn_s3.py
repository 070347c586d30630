"""A small S3 server that reads objects but refuses to list, and says what a test wants it to say."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Bucket:
    """What the server holds and says.

    Attributes:
        objects: /BUCKET/KEY -> content.
        refusal: status, code and message of every answer; None: objects are given out, and lists refused.
        signed: whether each request so far was signed.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    refusal: tuple[int, str, str] | None = None
    signed: list[bool] = field(default_factory=list)


@contextmanager
def stubborn_s3(bucket: Bucket) -> Iterator[str]:
    """URL of the server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            bucket.signed.append("Authorization" in self.headers)
            path = self.path.partition("?")[0]
            if bucket.refusal:
                self.refuse(*bucket.refusal)
            elif path in bucket.objects:
                self.give(bucket.objects[path])
            elif path.count("/") > 1:
                self.refuse(404, "NoSuchKey", "The specified key does not exist.")
            else:
                self.refuse(403, "AccessDenied", "Access Denied")

        do_GET = do_HEAD = do_PUT = answer

        def give(self, content: bytes) -> None:
            span = self.headers.get("Range", "")
            self.send_response(206 if span else 200)
            if span:
                first, last = span.removeprefix("bytes=").split("-")
                start = max(0, len(content) - int(last)) if not first else int(first)
                stop = len(content) if not first else min(int(last) + 1, len(content))
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
                content = content[start:stop]
            self.send_header("ETag", '"abc"')
            self.send(content)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            self.send(f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

        def send(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
