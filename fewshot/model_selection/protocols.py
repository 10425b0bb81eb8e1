"""The words that ask for tuning and for blending; known before anything heavy is imported.

none      the method's own defaults; nothing is chosen
cv        stratified folds over the support set itself: no other label is used
val       few-shot validation images, min(K, 4) of each class, as in CoOp
full-val  the whole validation split, as in the papers of Tip-Adapter and GDA

The first two use no labels but the support set's. The last uses many times more labels than the
few shots it tunes for, so a result names its protocol.
"""

from typing import Literal

from cache.errors import UserError

PROTOCOLS = ("none", "cv", "val", "full-val")
Share = Literal["auto"] | float


def default_protocol(shots: int) -> str:
    """`cv` from two shots on: one to learn from and one to judge by."""
    return "cv" if shots >= 2 else "none"


def check_share(share: object) -> None:
    """Raise UserError unless the share is `auto` or a number from 0 to 1."""
    if share != "auto" and not (isinstance(share, int | float) and 0 <= share <= 1):
        raise UserError(
            f"blend must be auto, or a number from 0 (zero-shot) to 1 (the method alone); got "
            f"{share!r}"
        )
