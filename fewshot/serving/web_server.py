"""A small HTTP server, on threads, that no client can keep busy, fill up or stop.

Python's own `http.server` reads requests; this adds what it lacks: a maximum of connections, of
bytes in a request and in all of them together, of seconds that a request may take to arrive, and
one sentence of JSON for every error.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from socketserver import ThreadingTCPServer
from types import FrameType
from typing import Any

from cache.errors import UserError
from fewshot.serving.connection import Connection
from fewshot.serving.messages import Reply, Request, RequestError, Respond, as_json

CONNECTIONS = 64  # each is a thread; a browser opens six
BODIES = 2**28  # bytes of all requests that are being answered
SECONDS = 60.0  # for a request to arrive, from its first line to its last byte
FINISH = 5.0  # seconds that answers get which are on their way when the server ends


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
            super().__init__((host, port), Connection)
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
            body = as_json({"error": "too many connections; try again"}).body
            request.sendall(
                b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%s" % (len(body), body)
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
