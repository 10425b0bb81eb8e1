"""Requests per second, latency and memory of `fewshot serve` with the tiny model.

    python -m benchmarks.serving [--requests 10000] [--clients 8]

Starts the server in a process of its own, and clients in threads of this one, each with one
connection that it keeps. Prints the requests per second, the median and the 99th percentile of the
time that an answer takes, and the resident memory of the server as requests go by.
"""

import argparse
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fewshot.adapters.making import fit_and_save
from fewshot.demo import extract_digits, write_photos

TIMES = 10  # that the memory is printed


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


def load(
    address: str, photos: list[bytes], requests: int, clients: int
) -> tuple[float, list[float]]:
    """The seconds that so many requests take in all, and the milliseconds of each."""
    todo = iter(range(requests))
    lock = threading.Lock()
    latencies: list[float] = []

    def client() -> None:
        host = urlsplit(f"//{address}")
        connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=60)
        while True:
            with lock:
                i = next(todo, None)
            if i is None:
                return
            start = time.perf_counter()
            photo = photos[i % len(photos)]
            connection.request("POST", "/predict", photo, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(content.decode())
            latencies.append(1000 * (time.perf_counter() - start))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, latencies


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
            seconds, latencies = 0.0, []
            for _ in range(TIMES):
                more, found = load(address, photos, asked.requests // TIMES, asked.clients)
                seconds += more
                latencies += found
                print(f"{len(latencies):7,} requests  {resident(server.pid):6.0f} MiB resident")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    p50, p99 = np.percentile(latencies, (50, 99))
    print(
        f"{len(latencies) / seconds:.0f} requests per second by {asked.clients} clients; "
        f"median {p50:.1f} ms, 99th percentile {p99:.1f} ms"
    )


if __name__ == "__main__":
    main()
