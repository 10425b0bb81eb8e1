"""Files of synthesized features: where they lie, and what they say of themselves, without torch.

Each lies beside its store, which stays as it is. Its name ends in a digest of all that the
generator learned from, so it is found by whoever would train the same, and by nobody else.
"""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from cache.errors import UserError, count
from fewshot.sealed_file import card_of, is_whole

SUFFIX = ".synthesized"
KEY = "fewshot synthesized"  # of the card in the metadata of the header
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """The facts that a file states of itself.

    Attributes:
        dataset: The dataset.
        model: The model.
        store: File name of the store, which lies beside.
        store_fingerprint: The store's.
        generator: The generator, and what was set of it.
        shots: K, images of each base class.
        seed: Random seed for drawing them, and for training.
        prompt_set: Prompt set of the class texts; empty for the dataset's own.
        images: Number of images it learned from.
        features: Number of features it made, of all new classes together.
        classes: Number of new classes.
        seconds: Time of training and drawing.
        fingerprint: Digest of all that it learned from.
        log: Names of the means that are kept of every epoch.
    """

    dataset: str
    model: str
    store: str
    store_fingerprint: str
    generator: str
    shots: int
    seed: int
    prompt_set: str
    images: int
    features: int
    classes: int
    seconds: float
    fingerprint: str
    log: list[str]

    @classmethod
    def of(cls, path: Path) -> "Card":
        """The card of a file, of which no more than the header is read.

        Raises:
            UserError: It is no such file, is damaged, or a later version wrote it.
        """
        try:
            found = card_of(path, KEY)
        except OSError as error:
            reason = error.strerror or "there is no such file"
            raise UserError(f"cannot read {path}: {reason}; name another") from None
        version = (found or {}).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise UserError(
                f"{path} is of format {version}, and this version reads up to {FORMAT}; update "
                "fewshot, or remove it"
            )
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {name: (found or {}).get(name) for name in kinds}
        if not all(isinstance(values[name], get_origin(k) or k) for name, k in kinds.items()):
            raise damaged(path)
        return cls(**values)

    def reader(self) -> str:
        """The command that reads it, of any method."""
        words = ["--dataset", self.dataset, "--model", self.model, "--base-to-new"]
        words += ["--synthesize", self.generator, "--shots", str(self.shots)]
        words += ["--seed", str(self.seed)]
        words += ["--prompts", self.prompt_set] if self.prompt_set else []
        return f"fewshot fit METHOD {shlex.join(words)}"


def damaged(path: Path) -> UserError:
    """The error for a file whose bytes are not those written."""
    return UserError(
        f"{path} is damaged: its bytes are not those written; remove it and run "
        "fewshot synthesize again"
    )


def kept_path(store: Path, generator: str, fingerprint: str) -> Path:
    """Where features of a store lie that a generator made of what has this digest."""
    return store.with_name(f"{store.stem}.{generator}-{fingerprint[:16]}{SUFFIX}")


def find_kept(root: Path) -> list[Path]:
    """Every such file in a folder of stores, or beside one store's file."""
    if root.is_file():
        return sorted(root.parent.glob(f"*{SUFFIX}"))
    return sorted(root.glob(f"*/*{SUFFIX}"))


def require_whole(path: Path) -> Card:
    """The card of a file, whose bytes are compared with their digest.

    Raises:
        UserError: As `Card.of`, or they are not the bytes that were written.
    """
    card = Card.of(path)
    if not is_whole(path.read_bytes(), str((card_of(path, KEY) or {}).get("digest"))):
        raise damaged(path)
    return card


def describe(path: Path) -> str:
    """A file described for a reader, a line for each fact."""
    card = asdict(Card.of(path))
    lines = {"synthesized": f"{path}, {path.stat().st_size:,} bytes", **card}
    lines["log"] = ", ".join(lines["log"])
    lines["seconds"] = f"{lines['seconds']:.1f}"
    width = max(map(len, lines))
    return "\n".join(f"{key.replace('_', ' '):<{width}}  {value}" for key, value in lines.items())


def is_stale(path: Path) -> bool:
    """True if the store is gone that the features are of, or has become another one."""
    from cache.store import FeatureStore

    card = Card.of(path)
    store = path.with_name(card.store)
    try:
        return FeatureStore.open(store).fingerprint != card.store_fingerprint
    except UserError:
        return not store.exists()


def prune(root: Path) -> int:
    """Remove features whose store is gone or has become another one; the number of files."""
    stale = [path for path in find_kept(root) if is_stale(path)]
    for path in stale:
        path.unlink()
    return len(stale)


def summary(card: Card) -> str:
    """One line: what there is, of what."""
    each = card.features // card.classes
    return (
        f"{count(card.features, 'feature')} of {count(card.classes, 'class', 'classes')} "
        f"({each} each) by {card.generator}, from {count(card.images, 'image')}, "
        f"{card.shots} of each base class, seed {card.seed}"
    )
