"""Numbers as people have them, as tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def as_tensor(values: ArrayLike | Tensor) -> Tensor:
    """A tensor as it is; arrays and lists of floats as float32, of integers as int64."""
    if isinstance(values, Tensor):
        return values
    made = torch.as_tensor(np.asarray(values))
    return made.float() if made.is_floating_point() else made.long()
