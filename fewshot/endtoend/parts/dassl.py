"""The training recipe of Dassl, which CoOp's code and the codes that grew out of it share."""

from torch.optim import SGD

from fewshot.endtoend.clip import Learner, TrainingPlan
from fewshot.training import cosine_by_epoch


def epochs_plan(epochs: int, n_images: int, batch_size: int, lr: float) -> TrainingPlan:
    """So many epochs, each without its last batch if that is not full, down along a cosine."""
    return TrainingPlan(
        iterations=epochs * max(1, n_images // batch_size),
        batch_size=batch_size,
        drop_last=True,
        schedule=cosine_by_epoch(lr, epochs),
    )


def momentum_sgd(learner: Learner, lr: float, weight_decay: float) -> SGD:
    """SGD with momentum 0.9 on all that is trained."""
    return SGD(learner.parameters.values(), lr=lr, momentum=0.9, weight_decay=weight_decay)
