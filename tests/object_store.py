"""An object store for the tests: a real server that speaks S3, on this machine, which fails when it is told to."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ERROR = b"<Error><Code>%s</Code><Message>We are %s.</Message></Error>"
# Held from now on, since the processes of Ray have the environment that they are started with.
SOCKET = socket.socket()
SOCKET.bind(("127.0.0.1", 0))
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{SOCKET.getsockname()[1]}",
    "AWS_ACCESS_KEY_ID": "cat",
    "AWS_SECRET_ACCESS_KEY": "cat",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",
}


@dataclass
class S3:
    """The server as a WSGI application: the real one behind faults, each for so many matching requests."""

    app: Callable[..., Any] = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))
    # (pattern of "METHOD /bucket/name", what happens, how many times)
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    hit: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        fault = self._next(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if not fault:
            return self.app(environ, start_response)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if fault == "stored, but 500":
            list(self.app(environ, lambda *_: None))
        elif fault == "cut off":
            environ["wsgi.input"].read(length // 2)
            environ["werkzeug.socket"].close()
        elif fault == "time-out":
            time.sleep(1.5)
        else:
            environ["wsgi.input"].read(length)
        code, name = ("403 Forbidden", b"AccessDenied") if fault == "403" else ("500 Internal", b"InternalError")
        start_response(code, [("Content-Type", "application/xml")])
        return [ERROR % (name, b"sorry")]

    def _next(self, request: str) -> str:
        with self.lock:
            for place, (pattern, fault, times) in enumerate(self.faults):
                if times and re.match(pattern, request):
                    self.faults[place] = (pattern, fault, times - 1)
                    self.hit.append(request)
                    return fault
        return ""


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[S3]:
    """Within the block it answers, and has the bucket `cats`."""
    application = S3()
    SOCKET.listen(64)
    host, port = SOCKET.getsockname()
    running = make_server(host, port, application, threaded=True, request_handler=Quiet, fd=SOCKET.fileno())
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    s3fs.S3FileSystem().mkdir("cats")
    yield application
    running.shutdown()
    thread.join()
