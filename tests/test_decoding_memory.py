import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cache.images.decoding_memory import DecodingMemory


def test_threads_never_hold_more_together() -> None:
    memory, lock = DecodingMemory(100), threading.Lock()
    held, most = 0, 0

    def work(size: int) -> None:
        nonlocal held, most
        with memory.hold(size):
            with lock:
                held += size
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= size

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [40, 30, 60, 20, 10] * 20))
    assert 40 < most <= 100


def test_what_is_larger_than_all_of_it_goes_alone() -> None:
    memory = DecodingMemory(100)
    entered = threading.Event()

    def large() -> None:
        with memory.hold(500):
            entered.set()

    with memory.hold(1):
        thread = threading.Thread(target=large)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(5)
    thread.join()


def test_an_error_gives_back_what_was_held() -> None:
    memory = DecodingMemory(100)
    with pytest.raises(RuntimeError), memory.hold(100):
        raise RuntimeError
    with memory.hold(100):
        pass
