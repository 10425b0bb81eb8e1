"""Checkpoints of the end-to-end path: all that the next step depends on, in one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor
from torch.optim import Optimizer

from cache.errors import UserError
from cache.files.atomic import replacing
from fewshot.endtoend.clip import Learner
from fewshot.endtoend.loss_trend import LossTrend


@dataclass(eq=False)
class State:
    """All that the next step of a training depends on.

    Attributes:
        learner: Its parameters and its memory.
        optimizer: And what it remembers of each parameter.
        scaler: And the scale of the loss.
        trend: And what is known of the losses.
        averages: And the average over epochs so far of each parameter, where one is taken.
    """

    learner: Learner
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    trend: LossTrend
    averages: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path, about: str, step: int) -> None:
        """Write it, whole or not at all; safetensors, no pickle.

        Args:
            path: Of the file.
            about: What is trained, as text.
            step: Steps that are done.
        """
        tensors = {f"parameter/{k}": v.detach() for k, v in self.learner.parameters.items()}
        tensors |= {f"average/{k}": v for k, v in self.averages.items()}
        tensors |= {f"memory/{k}": v.detach() for k, v in self.learner.memory.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"optimizer/{i}/{name}"] = torch.as_tensor(value).detach()
        scaling = json.dumps(self.scaler.state_dict())
        write_checkpoint(path, about, step, tensors, scaler=scaling, trend=self.trend.state())

    def load(self, path: Path, about: str) -> int:
        """Put all that was saved back where it was; the steps done by then.

        Raises:
            UserError: Another run's, or damaged.
        """
        note, tensors = read_checkpoint(path, about)
        here: dict[str, Tensor] = {}
        here |= {f"parameter/{k}": v for k, v in self.learner.parameters.items()}
        here |= {f"average/{k}": v for k, v in self.averages.items()}
        here |= {f"memory/{k}": v for k, v in self.learner.memory.items()}
        state: dict[int, dict[str, Any]] = {}
        try:
            with torch.no_grad():
                for name, tensor in here.items():
                    tensor.copy_(tensors[name])
            for key, value in tensors.items():
                if key.startswith("optimizer/"):
                    _, i, name = key.split("/", 2)
                    state.setdefault(int(i), {})[name] = value
            scaling = json.loads(note["scaler"])
            if "trend" in note:  # a checkpoint of before says nothing of its losses
                self.trend.load_state(note["trend"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise damaged(path, error) from None
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if scaling:
            self.scaler.load_state_dict(scaling)
        return int(note["step"])


def write_checkpoint(
    path: Path, about: str, step: int, tensors: Mapping[str, Tensor], **more: str
) -> None:
    """Write tensors, and a note of what they are of, whole or not at all."""
    note = {"about": about, "step": str(step), **more}
    # One key, since safetensors writes several in another order every time.
    note = {"checkpoint": json.dumps(note, sort_keys=True)}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(serialized(contiguous, note))


def read_checkpoint(path: Path, about: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The note of a checkpoint, whose `step` is a whole number, and its tensors.

    Raises:
        UserError: Another run's, or damaged.
    """
    try:
        note, tensors = _note(path), load_file(path)
        int(note["step"])
        other = note["about"] != about
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise damaged(path, error) from None
    if other:
        raise UserError(
            f"{path} is the checkpoint of another run, of other images, weights or options; remove "
            "it, or give another --out"
        )
    return note, tensors


def damaged(path: Path, error: Exception) -> UserError:
    """The error of a checkpoint that cannot be continued from."""
    return UserError(f"{path} is no checkpoint ({error}); remove it and start again")


def steps_done(path: Path) -> int:
    """Steps that a checkpoint has behind it; 0 where there is none or it cannot be read."""
    try:
        return int(_note(path)["step"])
    except (OSError, KeyError, ValueError, SafetensorError):
        return 0


def _note(path: Path) -> dict[str, str]:
    """The note beside a checkpoint's tensors; at first each part of it had a key of its own."""
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata() or {}
    note: dict[str, str] = json.loads(found["checkpoint"]) if "checkpoint" in found else found
    return note
