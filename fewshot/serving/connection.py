"""One client of the server: its requests in, their replies out, each within a time and a size."""

import contextlib
import io
import socket
import time
import traceback
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from fewshot.serving.messages import Reply, Request, RequestError, Respond

BODY = 2**25  # bytes of one request: 32 MiB
IDLE = 15.0  # for the next request to begin on a connection
LINGER = 2.0  # seconds for which a client is listened to that still sends what was refused


class Host(Protocol):
    """A server, as one of its connections sees it."""

    seconds: float
    respond: Respond

    def answering(self, size: int) -> AbstractContextManager[None]:
        """Count a request of so many bytes as being answered."""


class _Timed(io.RawIOBase):
    """The bytes of a connection, until a deadline rather than for a time per byte."""

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


class Connection(BaseHTTPRequestHandler):
    """Answers the requests of one client, one after the other."""

    server: Any  # the host; the library declares a type that has nothing of it
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of a line that is no HTTP: 0.9 would have no status
    server_version, sys_version = "fewshot", ""

    def setup(self) -> None:
        """Take the connection over."""
        super().setup()
        self._host: Host = self.server
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        """Wait for the next request, and answer it."""
        self._timed.give(min(IDLE, self._host.seconds))
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Read the lines before the body."""
        self._timed.give(self._host.seconds)
        return super().parse_request()

    def do_GET(self) -> None:
        """Answer a request without a body."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a request with a body."""
        self._answer()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what `http.server` refuses: a method, or lines that are no HTTP."""
        if code == 501:  # its way to say that there is no do_PUT here
            refused = RequestError(
                405, f"expected GET or POST; got {self.command[:20]}", Allow="GET, POST"
            )
        else:
            refused = RequestError(int(code), message or "expected a request of HTTP/1.1")
        self._refuse(refused)

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
            with self._host.answering(size):
                self._send(self._reply(size))
        except RequestError as refused:  # before the body was read
            self._refuse(refused)

    def _reply(self, size: int) -> Reply:
        try:
            body = self.rfile.read(size)
        except TimeoutError:
            seconds = f"{self._host.seconds:g}"
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
            return self._host.respond(request)
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
        self.connection.settimeout(self._host.seconds)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
