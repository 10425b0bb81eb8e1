"""An object storage on this machine that speaks S3, counts its requests and fails when it is to."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

KEY = "right"


class ObjectStorage:
    """Answers while it is open; `endpoint` is its URL.

    Attributes:
        fails: Coming requests that are answered with 503.
        seconds: How long each answer takes at least.
        most: Maximum number of requests that were answered at a time.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
        self.fails = self.most = self._running = 0
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            fail = self.fails > 0
            self.fails -= fail
        try:
            time.sleep(self.seconds)
            if fail:
                start("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
            if f"Credential={KEY}/" not in request.get("HTTP_AUTHORIZATION", ""):
                start("403 Forbidden", [("Content-Length", "0")])
                return [b""]
            return list(self._moto(request, start))
        finally:
            with self._lock:
                self._running -= 1
