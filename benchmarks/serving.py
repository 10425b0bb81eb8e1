"""Requests per second, latency and memory of `fewshot serve` with the tiny model.

    python -m benchmarks.serving [--requests 10000] [--clients 8]

Starts the server in a process of its own, and clients in threads of this one, each with one
connection that it keeps. Beside them one client sends what a server has to refuse, kind after kind,
without a pause. Prints the resident memory of the server as requests go by, the status of each kind
of bad request, the requests per second, the median and the 99th percentile of the time that a good
answer takes, and how far its probabilities are from those of the same photo sent alone.
"""

import argparse
import collections
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from fewshot.adapters.fitted_adapter import fit_and_save
from fewshot.demo import extract_digits, write_photos
from fewshot.serving.connection import BODY
from fewshot.serving.uploads import PARTS

TIMES = 10  # that the memory is printed
SLOW = "a client that sends a byte a second"
DROPPED = "a connection dropped in the middle"
Answer = tuple[str, list[float]]  # the label, and the probabilities


def made(folder: Path) -> tuple[Path, list[bytes]]:
    """A classifier of digits, and photos for it."""
    store, _ = extract_digits(folder / "features")
    path = folder / "adapter.safetensors"
    fit_and_save(store, "gda", path, shots=16, tune="none")
    write_photos(folder / "photos")
    return path, [file.read_bytes() for file in sorted(folder.glob("photos/unlabeled/*"))]


def started(adapter: Path) -> tuple[subprocess.Popen[str], str]:
    """The server's process and its address."""
    command = [sys.executable, "-m", "cli", "serve", str(adapter), "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://([^/]+)/predict", line):
            return server, found[1]
    raise RuntimeError("the server did not start")


def resident(pid: int) -> float:
    """MiB of a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def place(address: str) -> tuple[str, int]:
    """The host and the port."""
    found = urlsplit(f"//{address}")
    return str(found.hostname), found.port or 80


def post(body: bytes, kind: str = "image/png", *, size: int | None = None) -> bytes:
    """A request as it goes over the wire."""
    size = len(body) if size is None else size
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {size}"
    return f"{head}\r\n\r\n".encode() + body


def bad_requests(photo: bytes) -> Mapping[str, bytes]:
    """Kind -> a request that has to be refused."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    form = "multipart/form-data; boundary=mark"
    part = b'--mark\r\nContent-Disposition: form-data; filename="a"\r\n\r\n' + photo + b"\r\n"
    return {
        "no image": post(b"hello"),
        "an empty body": post(b""),
        "half an image": post(photo[: len(photo) // 2]),
        "a bomb of 200 million pixels": post(bomb.getvalue()),
        "more than 32 MiB": post(photo, size=BODY + 1),
        "more than 64 images": post(part * (PARTS + 1) + b"--mark--", form),
        "half a form": post(part, form),
        "a wrong type": post(photo, "text/plain"),
        "a wrong parameter": post(photo).replace(b"/predict", b"/predict?top=many"),
        "a wrong address": post(photo).replace(b"/predict", b"/classify"),
        "a wrong method": post(photo).replace(b"POST", b"PUT"),
        "no length": b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na",
        "no HTTP": b"hello\r\n\r\n",
        DROPPED: post(photo, size=2 * len(photo)),
    }


def refused(address: str, request: bytes, *, listen: bool = True) -> str:
    """The status of the answer; `none` where nobody stays to hear it."""
    with socket.create_connection(place(address), 120) as connection:
        connection.sendall(request)
        if not listen:
            return "none"
        return connection.makefile("rb").readline().split()[1].decode()


def slow(address: str) -> str:
    """The status of the answer to a client that sends a byte a second."""
    with socket.create_connection(place(address), 1) as connection:
        connection.sendall(post(b"", size=10_000))
        while True:
            with contextlib.suppress(TimeoutError):
                return connection.recv(4096).split()[1].decode()
            connection.sendall(b"x")


class Load:
    """Clients of a server, and what they have measured so far.

    Args:
        address: Of the server.
        photos: Good photos.
    """

    def __init__(self, address: str, photos: list[bytes]) -> None:
        self.latencies: list[float] = []  # milliseconds
        self.refusals: collections.Counter[tuple[str, str]] = collections.Counter()
        self.seconds = self.difference = 0.0
        self._address, self._photos = address, photos
        self._bad = bad_requests(photos[0])
        self._lock = threading.Lock()
        connection = http.client.HTTPConnection(*place(address), timeout=60)
        self._alone = [self._predicted(connection, photo) for photo in photos]

    def send(self, requests: int, clients: int) -> None:
        """Send so many good requests, and bad ones until they are answered."""
        todo, over = iter(range(requests)), threading.Event()
        good = [threading.Thread(target=self._good, args=(todo,)) for _ in range(clients)]
        bad = threading.Thread(target=self._refused_until, args=(over,))
        start = time.perf_counter()
        for thread in (bad, *good):
            thread.start()
        for thread in good:
            thread.join()
        self.seconds += time.perf_counter() - start
        over.set()
        bad.join()

    def _good(self, todo: Iterator[int]) -> None:
        connection = http.client.HTTPConnection(*place(self._address), timeout=60)
        while True:
            with self._lock:
                i = next(todo, None)
            if i is None:
                return
            i %= len(self._photos)
            start = time.perf_counter()
            label, p = self._predicted(connection, self._photos[i])
            self.latencies.append(1000 * (time.perf_counter() - start))
            if label != self._alone[i][0]:
                raise RuntimeError(f"photo {i} was {self._alone[i][0]}, and is {label}")
            apart = np.abs(np.subtract(p, self._alone[i][1])).max()
            self.difference = max(self.difference, float(apart))

    @staticmethod
    def _predicted(connection: http.client.HTTPConnection, photo: bytes) -> Answer:
        connection.request("POST", "/predict", photo, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(content)
        [found] = content["predictions"]
        return found["label"], found["probabilities"]

    def _refused_until(self, over: threading.Event) -> None:
        while not over.is_set():
            for kind, request in self._bad.items():
                status = refused(self._address, request, listen=kind != DROPPED)
                self.refusals[kind, status] += 1


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter, photos = made(Path(folder))
        server, address = started(adapter)
        try:
            print(f"{0:7,} requests  {resident(server.pid):6.0f} MiB resident", flush=True)
            load = Load(address, photos)
            held = threading.Thread(target=lambda: load.refusals.update([(SLOW, slow(address))]))
            held.start()
            for _ in range(TIMES):
                load.send(asked.requests // TIMES, asked.clients)
                done = len(load.latencies)
                print(f"{done:7,} requests  {resident(server.pid):6.0f} MiB resident", flush=True)
            held.join()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    for (kind, status), n in sorted(load.refusals.items()):
        print(f"{n:7,} x {kind}: {status}")
    p50, p99 = np.percentile(load.latencies, (50, 99))
    print(
        f"{len(load.latencies) / load.seconds:.0f} requests per second by {asked.clients} clients; "
        f"median {p50:.1f} ms, 99th percentile {p99:.1f} ms; probabilities within "
        f"{load.difference:.0e} of those of a photo sent alone"
    )


if __name__ == "__main__":
    main()
