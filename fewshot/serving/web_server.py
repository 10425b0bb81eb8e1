"""A small HTTP server, on threads, that no client can keep busy, fill up or stop.

Python's own `http.server` reads requests; this adds what it lacks: a maximum of connections, of
bytes in a request and in all of them together, of seconds that a request may take to arrive, and
one sentence of JSON for every error.
"""

import contextlib
import errno
import io
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cache.errors import UserError

CONNECTIONS = 64  # each is a thread; a browser opens six
BODY = 2**25  # bytes of one request: 32 MiB
BODIES = 2**28  # bytes of all requests that are being answered
SECONDS = 60.0  # for a request to arrive, from its first line to its last byte
IDLE = 15.0  # for the next request to begin on a connection
LINGER = 2.0  # seconds for which a client is listened to that still sends what was refused
FINISH = 5.0  # seconds that answers get which are on their way when the server ends


@dataclass(frozen=True)
class Request:
    """A request that arrived whole.

    Attributes:
        method: `GET` or `POST`.
        path: Of its address, without the query.
        query: Name -> its last value.
        headers: Name in small letters -> value.
        body: Empty where there is none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        body: Its bytes.
        kind: Its media type.
        status: Of HTTP.
        headers: Further ones.
    """

    body: bytes
    kind: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        status: Of HTTP, 400 or more.
        sentence: Why, and what to do.
        headers: Further ones of the answer.
    """

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(self) -> Reply:
        """The answer that says so."""
        return as_json({"error": str(self)}, self.status, **self.headers)


Respond = Callable[[Request], Reply]


def as_json(value: object, status: int = 200, **headers: str) -> Reply:
    """Return a value as JSON, with characters of any script written out."""
    body = json.dumps(value, allow_nan=False).encode()
    return Reply(body, status=status, headers=headers)


class WebServer(ThreadingTCPServer):
    """Takes its port when it is made, answers while `serving`, and is closed by a `with` block.

    Args:
        host: The address to listen at.
        port: The port; 0 for any that is free.
        seconds: For a request to arrive.

    Raises:
        UserError: The port is taken, or the address is none of this machine.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port
    request_queue_size = CONNECTIONS

    def __init__(self, host: str, port: int, *, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.respond: Respond = _not_yet
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._connections = threading.BoundedSemaphore(CONNECTIONS)
        self._changed = threading.Condition()
        self._bytes = self._answering = 0
        try:
            super().__init__((host, port), _Handler)
        except OverflowError:
            raise UserError(f"--port must be 0..65535; got {port}") from None
        except OSError as error:
            raise _cannot_listen(host, port, error) from None

    @property
    def place(self) -> tuple[str, int]:
        """The host and the port it listens at."""
        return str(self.server_address[0]), int(self.server_address[1])

    @property
    def address(self) -> str:
        """The address it listens at, such as `http://127.0.0.1:8000`."""
        host, port = self.place
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @contextlib.contextmanager
    def serving(self, respond: Respond) -> Iterator[None]:
        """Answer requests, in threads, until the block ends; answers on their way get `FINISH`.

        Args:
            respond: Makes the answers; raises `RequestError` where there is none.
        """
        self.respond = respond
        thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            with self._changed:
                self._changed.wait_for(lambda: not self._answering, FINISH)

    @contextlib.contextmanager
    def answering(self, size: int) -> Iterator[None]:
        """Count a request of so many bytes as being answered.

        Raises:
            RequestError: All requests together have too many.
        """
        with self._changed:
            if self._bytes + size > BODIES:
                raise RequestError(503, "too many uploads at once; send it again", Retry_After="1")
            self._bytes += size
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._bytes -= size
                self._answering -= 1
                self._changed.notify_all()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or say at once that there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n"
            )
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer what comes on one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that went away; show what else fails, which is a fault of ours."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


def _not_yet(request: Request) -> Reply:
    raise RequestError(503, "the server is about to start; try again", Retry_After="1")


def until_interrupted() -> None:
    """Wait for Ctrl-C, or for the signal that ends a process."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} is taken by another program; give --port another one, or 0 for any that "
            "is free"
        )
    if error.errno == errno.EACCES:
        return UserError(f"port {port} is not allowed to you; give --port one from 1024 on")
    return UserError(
        f"cannot listen at {host} ({error.strerror}); give --host an address of this machine, such "
        "as 127.0.0.1"
    )


class _Timed(io.RawIOBase):
    """What arrives on a connection, until a deadline rather than for a time per byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)

    def give(self, seconds: float) -> None:
        """Move the deadline to so many seconds from now."""
        self.deadline = time.monotonic() + seconds


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: WebServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fewshot", ""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        self._timed.give(min(IDLE, self.server.seconds))
        super().handle_one_request()

    def parse_request(self) -> bool:
        self._timed.give(self.server.seconds)
        return super().parse_request()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what `http.server` refuses: a method, or lines that are no HTTP."""
        self._refuse(
            RequestError(int(code), message or "this is no HTTP that the server understands")
        )

    def handle_expect_100(self) -> bool:
        """Ask for the body only if it will be taken."""
        try:
            self._size()
        except RequestError as refused:
            self._refuse(refused)
            return False
        return super().handle_expect_100()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        try:
            size = self._size()
            with self.server.answering(size):
                self._send(self._reply(size))
        except RequestError as refused:  # before the body was read
            self._refuse(refused)

    def _reply(self, size: int) -> Reply:
        try:
            body = self.rfile.read(size)
        except TimeoutError:
            seconds = f"{self.server.seconds:g}"
            raise RequestError(
                408, f"the request took more than {seconds} s; send it faster"
            ) from None
        if len(body) < size:
            raise ConnectionResetError
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, address.path, query, headers, body)
        try:
            return self.server.respond(request)
        except RequestError as refused:
            return refused.reply()
        except Exception:
            traceback.print_exc()
            return RequestError(500, "the server failed; its terminal shows why").reply()

    def _size(self) -> int:
        """Bytes of the body.

        Raises:
            RequestError: It does not say, or there are too many.
        """
        if "transfer-encoding" in self.headers:
            raise RequestError(411, "the upload does not say how long it is; send Content-Length")
        length = self.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(400, "Content-Length is no number; send the length of the upload")
        if len(length) > 18 or int(length) > BODY:
            raise RequestError(
                413, f"an upload may have {BODY:,} bytes; send fewer or smaller images"
            )
        return int(length)

    def _refuse(self, refused: RequestError) -> None:
        """Answer, and end the connection; the client may be sending still, and has to be heard.

        Closed at once, it would get a reset in place of the answer.
        """
        self.close_connection = True
        self._send(refused.reply())
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._timed.give(LINGER)
            while self.rfile.read1(2**16):
                pass

    def _send(self, reply: Reply) -> None:
        self.connection.settimeout(self.server.seconds)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)
