"""Numbers as people have them, as tensors."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cache.errors import UserError, excerpt


def as_tensor(values: ArrayLike | Tensor) -> Tensor:
    """A tensor as it is; arrays and lists of floats as float32, of integers as int64.

    Raises:
        UserError: They are no numbers.
    """
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"expected an array of numbers; got {excerpt(values)}; number class names from 0 on"
        )
    made = torch.as_tensor(array)
    return made.float() if made.is_floating_point() else made.long()
