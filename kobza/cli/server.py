"""A server in OpenAI's form over one opened or edited model; standard library only, on loopback unless told otherwise.

Each connection has a thread; `at_once` of them generate, the others wait their turn, and more than `most` connections
are turned away, so memory is bounded: at most `at_once` caches. A client that goes away is noticed at the next token,
or while it waits, and its cache is freed.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from kobza import __version__
from kobza.cli.completions import Answer, read
from kobza.core.errors import KobzaError, OutOfResources, Unavailable, UnknownName

BODY = 1 << 20  # bytes of a request at most
PATIENCE = 30.0  # seconds for a client to send its request
ROUTES = {"/v1/chat/completions": True, "/v1/completions": False}  # path -> whether it is a chat
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Refused(Exception):
    """A request that is answered with an error status.

    Args:
        status: of HTTP.
        message: for the client.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """The server.

    Args:
        model: what answers.
        host, port: where to listen; port 0 takes a free one.
        at_once: generations that run together; each holds a cache.
        most: connections held at most; more are answered 503.
        backend: what runs the model (see models.stepping).

    Attributes:
        running: generations that hold a cache now.
        served: answers given to their end.
    """

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(
        self,
        model: Any,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        at_once: int = 4,
        most: int = 256,
        backend: str = "auto",
    ) -> None:
        super().__init__((host, port), Handler)
        self.model = model
        self.backend = backend
        self.running = 0
        self.served = 0
        self._most = most
        self._open = 0
        self._turn = threading.Semaphore(at_once)
        self._count = threading.Lock()

    @property
    def url(self) -> str:
        """Where clients point: http://host:port/v1."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, or turn it away where there are too many."""
        with self._count:
            is_full = self._open >= self._most
            self._open += not is_full
        if is_full:
            answer = (
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            request.sendall(answer)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._count:
                self._open -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a connection that broke be; nothing is printed."""

    @contextmanager
    def turn(self, connection: socket.socket) -> Iterator[None]:
        """Wait for a turn to generate.

        Raises:
            ConnectionError: the client went away while it waited.
        """
        while not self._turn.acquire(timeout=0.25):
            if is_gone(connection):
                raise ConnectionError
        with self._count:
            self.running += 1
        try:
            yield
        finally:
            with self._count:
                self.running -= 1
            self._turn.release()


def is_gone(connection: socket.socket) -> bool:
    """Say whether the other side has closed the connection."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"kobza/{__version__}"
    sys_version = ""
    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer /v1/models and /health."""
        with self._errors():
            self._check_host()
            path = urlsplit(self.path).path.rstrip("/")
            entry = {"id": self.server.model.name, "object": "model", "created": int(time.time()), "owned_by": "kobza"}
            if path == "/v1/models":
                self._send(200, {"object": "list", "data": [entry]})
            elif path == f"/v1/models/{entry['id']}":
                self._send(200, entry)
            elif path == "/health":
                self._send(200, {"status": "ok", "running": self.server.running, "served": self.server.served})
            else:
                raise Refused(405 if path in ROUTES else 404, f"no GET at {path}; there are /v1/models and /health.")

    def do_POST(self) -> None:
        """Answer /v1/chat/completions and /v1/completions."""
        with self._errors():
            self._check_host()
            path = urlsplit(self.path).path.rstrip("/")
            body = self._body()
            if path not in ROUTES:
                raise Refused(404, f"no POST at {path}; there are {' and '.join(ROUTES)}.")
            asked = read(body, is_chat=ROUTES[path])
            named = body.get("model")
            if named not in (None, self.server.model.name):
                raise Refused(404, f"the model {str(named)[:80]!r} is not here; here is {self.server.model.name!r}.")
            with self.server.turn(self.connection):
                answer = Answer(asked, _generation(self.server, asked), self.server.model.name)
                if asked.is_stream:
                    self._stream(answer)
                else:
                    for _ in answer.generation:
                        if is_gone(self.connection):
                            raise ConnectionError
                    self._send(200, answer.whole())
            self.server.served += 1

    def _check_host(self) -> None:
        """Refuse names that lead here by a trick of DNS: a page in a browser must not reach the model."""
        host = self.headers.get("Host", "localhost").rpartition(":")[0] or self.headers.get("Host", "localhost")
        if self.server.server_address[0] in ("127.0.0.1", "::1") and host not in LOCAL:
            raise Refused(403, f"the host {host[:80]!r} is not this machine.")

    def _body(self) -> dict[str, Any]:
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.close_connection = True
            raise Refused(411, "the request does not say its Content-Length.") from None
        if not 0 <= size <= BODY:
            self.close_connection = True
            raise Refused(413, f"the request has {size} bytes; allowed are {BODY}.")
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON.") from None
        if not isinstance(body, dict):
            raise Refused(400, "the request is not a JSON object.")
        return body

    @contextmanager
    def _errors(self) -> Iterator[None]:
        self._is_begun = False
        try:
            yield
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Refused as error:
            self._fail(error.status, str(error))
        except KobzaError as error:
            is_ours = isinstance(error, OutOfResources | Unavailable)
            self._fail(503 if is_ours else 404 if isinstance(error, UnknownName) else 400, str(error))
        except Exception as error:  # noqa: BLE001 (a bug must not end in silence)
            self._fail(500, f"{type(error).__name__} inside kobza; please report it.")

    def _fail(self, status: int, message: str) -> None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"error": {"message": message, "type": kind, "param": None, "code": None}}
        try:
            if self._is_begun:
                self._chunk(b"data: " + json.dumps(error).encode() + b"\n\n")
                self._chunk(b"")
            else:
                self._send(status, error)
        except OSError:
            self.close_connection = True

    def _send(self, status: int, document: Any) -> None:
        data = json.dumps(document, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, answer: Answer) -> None:
        pieces = answer.pieces()
        first = next(pieces)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._is_begun = True
        piece: dict[str, Any] | None = first
        while piece is not None:
            if is_gone(self.connection):
                raise ConnectionError
            self._chunk(b"data: " + json.dumps(piece, ensure_ascii=False).encode() + b"\n\n")
            piece = next(pieces, None)
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def _generation(server: Server, asked: Any) -> Any:
    from kobza.core import techniques
    from kobza.core.options import check
    from kobza.models.stepping import using

    verb = techniques.verb("decoding", asked.strategy)
    with using(server.backend):  # a thread of its own does not inherit the choice
        return verb(server.model, asked.prompt, **check(verb, asked.options, what=f"strategy {asked.strategy!r}"))
