"""An S3 server on this machine, behind a proxy that loses requests and answers, fails, and tears uploads."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST, BUCKET = "127.0.0.1", "runs"
START_SECONDS = 120
KINDS = ("error 503", "connection lost", "answer lost", "torn")
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "KEYOFTESTS", "AWS_SECRET_ACCESS_KEY": "SECRETOFTESTS", "AWS_REGION": "us-east-1"}


class FaultyProxy(ThreadingHTTPServer):
    """Forwards requests to the server; the request of one index fails.

    Attributes:
        kind: How it fails.
        index: Which one fails, counted from 0 since `inject`.
        requests: Number of requests since then.
    """

    def __init__(self, port: int) -> None:
        super().__init__((HOST, 0), _Handler)
        self.port, self.kind, self.index, self.requests = port, "", -1, 0
        self._counting = threading.Lock()

    def inject(self, kind: str = "", index: int = -1) -> None:
        """Let one of the next requests fail."""
        self.kind, self.index, self.requests = kind, index, 0

    def count_request(self) -> str:
        """Count a request, and return how it fails; empty if it does not."""
        with self._counting:
            self.requests += 1
            return self.kind if self.requests - 1 == self.index else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, *_: Any) -> None:
        """Write no log."""

    def _forward(self) -> None:
        fault, body = self.server.count_request(), self._read_body()
        if fault == "connection lost":
            self.close_connection = True
            return
        if fault == "error 503":
            self._answer(503, [], b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>")
            return
        if fault == "torn" and self.command == "PUT":
            body = body[: len(body) // 2]
        connection = HTTPConnection(HOST, self.server.port, timeout=60)
        skipped = {"content-length", "connection", "transfer-encoding"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        if fault == "answer lost":
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), content[: len(content) // 2] if fault == "torn" else content)

    def do_GET(self) -> None:
        self._forward()

    def do_PUT(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def do_DELETE(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        own = {"content-length", "connection", "transfer-encoding"}
        for name, value in headers:
            if name.lower() not in own or (self.command == "HEAD" and name.lower() == "content-length"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content)


@contextmanager
def run_server() -> Iterator[FaultyProxy]:
    """Run moto in a process of its own, and the proxy in a thread; yields the proxy, with one empty bucket."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | ENVIRONMENT,
    )
    try:
        _create_bucket(port)
        with FaultyProxy(port) as proxy:
            thread = threading.Thread(target=proxy.serve_forever)
            thread.start()
            try:
                yield proxy
            finally:
                proxy.shutdown()
                thread.join()
    finally:
        process.terminate()
        process.wait()


def _create_bucket(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connection = HTTPConnection(HOST, port, timeout=60)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
        except (OSError, HTTPException):
            assert time.monotonic() < deadline, "the S3 server must answer"
            time.sleep(0.2)
        else:
            return
