"""The training recipe of Dassl, which CoOp's code and the codes that grew out of it share."""

from torch.optim import SGD

from cache.errors import UserError
from fewshot.endtoend.clip import Learner
from fewshot.endtoend.training_plan import TrainingPlan
from fewshot.training import cosine_by_epoch


def epochs_plan(epochs: int, n_images: int, batch_size: int, lr: float) -> TrainingPlan:
    """So many epochs, each without its last batch if that is not full, down along a cosine."""
    return TrainingPlan(
        iterations=epochs * max(1, n_images // batch_size),
        batch_size=batch_size,
        drop_last=True,
        schedule=cosine_by_epoch(lr, epochs),
    )


def require_context(n_ctx: int, default: int, ctx_init: str, *, fewer: bool = False) -> None:
    """Raise where a number of context tokens is given in vain, since words say how many there are.

    Args:
        n_ctx: The number.
        default: That of the method, which words replace without a word.
        ctx_init: Words that the context starts from; empty for none.
        fewer: Fewer tokens than words can be learned.

    Raises:
        UserError: It is another number than the words have.
    """
    n = len(ctx_init.replace("_", " ").split())
    if n and n_ctx not in (default, n) and not (fewer and n_ctx < n):
        at_most = "at most " if fewer else ""
        raise UserError(
            f"n_ctx must be {at_most}{n}, the number of words in ctx_init {ctx_init!r}; got "
            f"{n_ctx}; change one of them, or give an empty ctx_init"
        )


def momentum_sgd(learner: Learner, lr: float, weight_decay: float) -> SGD:
    """SGD with momentum 0.9 on all that is trained."""
    return SGD(learner.parameters.values(), lr=lr, momentum=0.9, weight_decay=weight_decay)
