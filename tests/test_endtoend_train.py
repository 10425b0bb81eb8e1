import contextlib
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache.errors import UserError
from cache.models.encoder import Encoder
from cache.models.loading import load
from fewshot.endtoend.checkpoint import steps_done
from fewshot.endtoend.clip import Clip, Learner
from fewshot.endtoend.interruption import interrupted_later
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.train import train
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import cosine_by_step
from tests.forked import needs_fork, start, stop_once

NAMES = ["cat", "dog", "zebra"]
LABELS = torch.arange(3).repeat(4)


def pixels(rows: Tensor, epoch: int) -> Tensor:
    """Crops that depend on row and epoch alone, as photos' do."""
    draws = [
        torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(97 * epoch + row))
        for row in rows.tolist()
    ]
    return torch.stack(draws) + LABELS[rows][:, None, None, None]


@dataclass
class Run:
    """One training of a CLIP-LoRA with dropout, to be stopped and resumed."""

    encoder: Encoder
    method: CLIPLoRA = CLIPLoRA(dropout=0.3, batch_size=5, lr=1e-2)  # noqa: RUF009  # frozen
    iterations: int = 9
    seed: int = 1

    def __call__(
        self, checkpoint: Path | None = None, stop: int = 0, pressed: int = 0, **more: Any
    ) -> Any:
        clip = Clip.of(self.encoder)
        learner = self.method.attach(clip, NAMES, ["{}"])
        plan = TrainingPlan(self.iterations, self.method.batch_size, cosine_by_step(self.method.lr))
        steps: list[int] = []

        def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
            steps.append(step)
            if step == stop:
                raise KeyboardInterrupt
            if step == pressed:
                signal.raise_signal(signal.SIGINT)

        try:
            train(
                learner, clip, plan, self.method.optimizer(learner), pixels, LABELS,
                seed=self.seed, checkpoint=checkpoint, watch=watch, **{"every": 0, **more},
            )  # fmt: skip
        except KeyboardInterrupt:
            assert stop or pressed
        return {k: v.detach().clone() for k, v in learner.parameters.items()}, steps


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_mean_over_epochs_is_the_result_and_survives_a_stop(
    encoder: Encoder, tmp_path: Path
) -> None:
    shares = (0.2, 0.5, 0.3)  # of three epochs of three batches
    ends: list[dict[str, Tensor]] = []

    def train_averaging(checkpoint: Path | None = None, stop: int = 0) -> dict[str, Tensor]:
        learner = CLIPLoRA().attach(Clip.of(encoder), NAMES, ["{}"])
        plan = TrainingPlan(9, 5, cosine_by_step(1e-2), epoch_shares=shares)

        def watch(step: int, loss: float, accuracy: float, rate: float) -> None:
            if step % 3 == 0:
                ends.append({k: v.detach().clone() for k, v in learner.parameters.items()})
            if step == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            train(
                learner, Clip.of(encoder), plan, CLIPLoRA().optimizer(learner), pixels, LABELS,
                seed=1, checkpoint=checkpoint, every=0, watch=watch,
            )  # fmt: skip
        return {k: v.detach().clone() for k, v in learner.parameters.items()}

    final = train_averaging()
    for name, value in final.items():
        mean = sum(share * end[name] for share, end in zip(shares, ends, strict=True))
        torch.testing.assert_close(value, mean)
        assert not torch.equal(value, ends[-1][name]) or not value.any()
    path = tmp_path / "c.safetensors"
    train_averaging(path, stop=5)
    assert equal(train_averaging(path), final)
    assert equal(train_averaging(path), final)  # of a finished run, no step is done again


@pytest.mark.parametrize("pro", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    encoder: Encoder, tmp_path: Path, stop: int, pro: bool
) -> None:
    run = Run(encoder, CLIPLoRA(dropout=0.3, batch_size=5, lr=1e-2, pro=pro))
    undisturbed, _ = run()
    run(tmp_path / "c.safetensors", stop)
    resumed, steps = run(tmp_path / "c.safetensors")
    assert steps == list(range(stop, 10))  # the step in which it was stopped had not been kept
    assert equal(resumed, undisturbed)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_after_a_checkpoint_of_the_step(encoder: Encoder, tmp_path: Path) -> None:
    run = Run(encoder)
    undisturbed, _ = run()
    before = signal.getsignal(signal.SIGINT)
    _, steps = run(tmp_path / "c.safetensors", pressed=3, every=1000)
    assert steps == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    resumed, steps = run(tmp_path / "c.safetensors")
    assert steps == list(range(4, 10))
    assert equal(resumed, undisturbed)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with interrupted_later() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_finished_run_is_not_trained_again(encoder: Encoder, tmp_path: Path) -> None:
    run = Run(encoder)
    first, _ = run(tmp_path / "c.safetensors")
    again, steps = run(tmp_path / "c.safetensors")
    assert steps == []
    assert equal(first, again)


def test_seeds_differ_and_the_global_generator_is_left_alone(encoder: Encoder) -> None:
    torch.manual_seed(5)
    first, _ = Run(encoder)()
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert equal(Run(encoder)()[0], first)
    assert not equal(Run(encoder, seed=2)()[0], first)


@pytest.mark.parametrize("seed", [-1, 2**63 - 1])
def test_any_seed_of_64_bits_trains(encoder: Encoder, seed: int) -> None:
    first, steps = Run(encoder, iterations=1, seed=seed)()
    assert steps == [1]
    assert not equal(first, Run(encoder, iterations=1, seed=seed - 1)()[0])


def test_it_learns(encoder: Encoder) -> None:
    losses: list[float] = []
    clip = Clip.of(encoder)
    method = CLIPLoRA(dropout=0.0, lr=1e-2, batch_size=12)
    learner = method.attach(clip, NAMES, ["{}"])
    train(
        learner, clip, TrainingPlan(30, 12, cosine_by_step(1e-2)), method.optimizer(learner),
        pixels, LABELS, seed=1, watch=lambda step, loss, accuracy, rate: losses.append(loss),
    )  # fmt: skip
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_chunks_with_dropout_train_as_the_whole_does(encoder: Encoder) -> None:
    whole = Run(encoder, CLIPLoRA(dropout=0.3, batch_size=5, lr=1e-2, towers="text"))
    chunks = replace(whole, method=replace(whole.method, text_chunk=3))
    batches = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for run in (whole, chunks):
        clip = Clip.of(encoder)
        learner = run.method.attach(clip, NAMES, ["{}"])
        train(
            learner, clip, TrainingPlan(4, 5, cosine_by_step(1e-2)), run.method.optimizer(learner),
            lambda rows, epoch: batches[rows], LABELS, seed=1,
        )  # fmt: skip
        results.append(torch.cat([p.detach().flatten() for p in learner.parameters.values()]))
    torch.testing.assert_close(*results)


def test_batches_are_permutations_with_the_last_one_kept_or_dropped(encoder: Encoder) -> None:
    seen: list[list[int]] = []

    def batches(rows: Tensor, epoch: int) -> Tensor:
        seen.append(rows.tolist())
        return torch.ones(len(rows), 16)

    parameter = torch.nn.Parameter(torch.ones(3, 16))
    learner = Learner({"p": parameter}, 1.0, lambda: parameter)
    for drop_last, sizes in ((False, [5, 5, 2, 5]), (True, [5, 5, 5, 5])):
        seen.clear()
        plan = TrainingPlan(4, 5, lambda epoch, done: 0.1, drop_last=drop_last)
        train(
            learner, Clip.of(encoder), plan, torch.optim.SGD([parameter]), batches, LABELS, seed=1
        )
        assert [len(rows) for rows in seen] == sizes
        n_first = 3 if not drop_last else 2
        first = [row for rows in seen[:n_first] for row in rows]
        assert len(set(first)) == len(first)
    assert sorted(row for rows in seen[:2] for row in rows) != list(range(10))


def test_the_learning_rate_is_the_schedules(encoder: Encoder) -> None:
    asked: list[tuple[int, float]] = []
    rates: list[tuple[float, float]] = []  # the optimizer's and the one that is told

    def schedule(epoch: int, done: float) -> float:
        asked.append((epoch, done))
        return 0.01 * len(asked)

    parameter = torch.nn.Parameter(torch.ones(3, 16))
    learner = Learner({"p": parameter}, 1.0, lambda: parameter)
    optimizer = torch.optim.SGD([parameter])
    train(
        learner, Clip.of(encoder), TrainingPlan(4, 6, schedule), optimizer,
        lambda rows, epoch: torch.ones(len(rows), 16), LABELS,
        seed=1, watch=lambda *a: rates.append((optimizer.param_groups[0]["lr"], a[3])),
    )  # fmt: skip
    assert asked == [(0, 0.0), (0, 0.25), (1, 0.5), (1, 0.75)]
    assert rates == [(rate, rate) for rate in (0.01, 0.02, 0.03, 0.04)]


def test_another_runs_checkpoint_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    Run(encoder)(tmp_path / "c", about="one")
    with pytest.raises(UserError, match="is the checkpoint of another run"):
        Run(encoder)(tmp_path / "c", about="other")


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_checkpoint_is_refused(
    encoder: Encoder, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "c"
    Run(encoder)(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="is no checkpoint"):
        Run(encoder)(path)


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("fp16", "use a smaller lr, or --precision bf16 or fp32"),
        ("bf16", "use a smaller lr"),
        ("fp32", "use a smaller lr"),
    ],
)
def test_a_loss_that_is_no_number_stops_the_run(
    encoder: Encoder, precision: str, remedy: str
) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 16))
    learner = Learner({"p": parameter}, float("inf"), lambda: parameter)
    clip = replace(Clip.of(encoder), precision=precision)
    with pytest.raises(UserError, match=f"the loss is nan in step 1 of 3; {remedy}$"):
        train(
            learner, clip, TrainingPlan(3, 6, lambda epoch, done: 0.1),
            torch.optim.SGD([parameter]), lambda rows, epoch: torch.ones(len(rows), 16), LABELS,
            seed=1,
        )  # fmt: skip


@needs_fork
def test_kill_9_at_any_moment_costs_nothing_but_time(random_vit: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.safetensors"
    run = Run(load(f"local-dir:{random_vit}", device="cpu"), iterations=60)
    for _ in range(2):
        process = start(lambda: run(checkpoint) and None, err=tmp_path / "said.txt")
        stop_once(process, checkpoint.exists, signal.SIGKILL, after=0.1)
        assert process.exitcode == -9
    resumed, steps = run(checkpoint)
    assert steps[0] > 0
    undisturbed, _ = run(tmp_path / "undisturbed.safetensors")
    assert equal(resumed, undisturbed)
    assert checkpoint.read_bytes() == (tmp_path / "undisturbed.safetensors").read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_line_that_says_what_takes_less(
    encoder: Encoder, error: Exception
) -> None:
    def text() -> Tensor:
        raise error

    learner = Learner({"p": torch.nn.Parameter(torch.ones(3, 16))}, 1.0, text)
    optimizer = torch.optim.SGD(learner.parameters.values())
    plan = TrainingPlan(1, 12, lambda epoch, done: 0.1)
    with pytest.raises(
        UserError,
        match=r"out of memory: .* could not be had.*, in step 1; --save-memory needs less",
    ):
        train(
            learner, Clip.of(encoder), plan, optimizer,
            lambda rows, epoch: torch.ones(len(rows), 16), LABELS, seed=1,
        )  # fmt: skip


def test_other_errors_of_torch_are_not_taken_for_too_little_memory(encoder: Encoder) -> None:
    learner = Learner({"p": torch.nn.Parameter(torch.ones(3, 7))}, 1.0, lambda: torch.ones(3, 7))
    optimizer = torch.optim.SGD(learner.parameters.values())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(
            learner, Clip.of(encoder), TrainingPlan(1, 12, lambda epoch, done: 0.1), optimizer,
            lambda rows, epoch: torch.ones(len(rows), 16), LABELS, seed=1,
        )  # fmt: skip


def test_a_checkpoint_of_before_its_note_was_one_key_still_resumes(
    encoder: Encoder, tmp_path: Path
) -> None:
    run = Run(encoder)
    whole, _ = run(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        note = json.loads(file.metadata()["checkpoint"])
    tensors = load_file(tmp_path / "new.safetensors")
    save_file(tensors, tmp_path / "old.safetensors", note)
    assert steps_done(tmp_path / "old.safetensors") == steps_done(tmp_path / "new.safetensors") > 0
    resumed, steps = run(tmp_path / "old.safetensors")
    assert steps == []
    assert equal(resumed, whole)


def test_there_are_no_steps_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert steps_done(tmp_path / "none.safetensors") == 0
    (tmp_path / "bad.safetensors").write_bytes(b"no checkpoint")
    assert steps_done(tmp_path / "bad.safetensors") == 0


def test_every_epoch_has_an_order_of_its_own(encoder: Encoder) -> None:
    seen: list[list[int]] = []

    def batches(rows: Tensor, epoch: int) -> Tensor:
        seen.append(rows.tolist())
        return torch.ones(len(rows), 16)

    parameter = torch.nn.Parameter(torch.ones(3, 16))
    learner = Learner({"p": parameter}, 1.0, lambda: parameter)
    plan = TrainingPlan(3, 12, lambda epoch, done: 0.1)
    train(learner, Clip.of(encoder), plan, torch.optim.SGD([parameter]), batches, LABELS, seed=1)
    assert len({tuple(rows) for rows in seen}) == 3
    assert all(sorted(rows) == list(range(12)) for rows in seen)
