import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fewshot.bench.workers import THREADS, WorkerDiedError, each

ROOT = Path(__file__).parents[1]


def act(task: str) -> str:
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "leave":
        os._exit(3)
    if task == "threads":
        return os.environ[THREADS[0]]
    return f"{task} in {os.getpid()}"


def test_one_job_is_done_here_in_order() -> None:
    begun: list[str] = []
    done = list(each(act, ["b", "a"], 1, begun.append))
    assert done == [("b", f"b in {os.getpid()}"), ("a", f"a in {os.getpid()}")]
    assert begun == ["b", "a"]


def test_a_task_that_kills_its_process_costs_nothing_else() -> None:
    begun: list[str] = []
    tasks = ["a", "die", "b", "leave", "threads", "c"]
    done = dict(each(act, tasks, 2, begun.append))
    assert begun == tasks
    assert set(done) == set(tasks)
    assert isinstance(done["die"], WorkerDiedError)
    assert str(done["die"]) == "its process was ended by SIGKILL; out of memory?"
    assert str(done["leave"]) == "its process ended with code 3"
    here = str(os.getpid())
    assert all(str(done[name]).startswith(f"{name} in ") for name in "abc")
    assert all(here not in str(done[name]) for name in "abc")


SLEEPERS = """
import sys, time
from fewshot.bench.workers import each
if __name__ == "__main__":
    print("up", flush=True)
    for _ in each(time.sleep, [600, 600], 2, lambda task: print("begun", flush=True)):
        pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_with_their_parent_even_if_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["up\n", "begun\n", "begun\n"]
        assert len(alive(process.pid)) > 2
        process.kill()
    deadline = time.monotonic() + 60
    while alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(group: int) -> list[int]:
    """The processes of the group that are more than a corpse."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[2]) == group and after_name[0] != "Z":
            found.append(int(stat.parent.name))
    return found
