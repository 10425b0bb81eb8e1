"""The options of `fewshot train` in a benchmark, for methods that are trained through the model."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cache.errors import UserError
from cache.files.toml_table import TomlTable
from cache.images.decoding_memory import MAX_PIXELS
from fewshot.endtoend.crops import require_shares


@dataclass(frozen=True)
class TrainOptions:
    """How to train; methods on stored features need none of it.

    Attributes:
        data_root: The folder of the datasets; None for $FEWSHOT_DATA, else ./data.
        device: auto, cpu, cuda, mps or xpu.
        precision: auto, fp32, bf16 or fp16.
        crop_scale: Minimum and maximum share of the image's area in a crop; None for the paper's.
        flip: Mirror half of the crops; None for the paper's choice.
        official: Train with the published recipe exactly.
        save_memory: Compute activations twice instead of keeping them.
        max_pixels: Width times height of the largest image that is decoded.

    Raises:
        UserError: The crop scale is no range of shares.
    """

    data_root: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    crop_scale: tuple[float, float] | None = None
    flip: bool | None = None
    official: bool = False
    save_memory: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        require_shares(self.crop_scale)

    def given(self) -> dict[str, Any]:
        """The options that are not as by default."""
        usual = {one.name: one.default for one in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    def words(self) -> list[str]:
        """The options of a command line that say the same."""
        words = ["--data-root", str(self.data_root)] if self.data_root else []
        words += ["--device", self.device] if self.device != "auto" else []
        words += ["--precision", self.precision] if self.precision != "auto" else []
        words += ["--crop-scale", *map(str, self.crop_scale)] if self.crop_scale else []
        words += [] if self.flip is None else ["--flip" if self.flip else "--no-flip"]
        words += ["--official"] if self.official else []
        words += ["--save-memory"] if self.save_memory else []
        words += ["--max-pixels", str(self.max_pixels)] if self.max_pixels != MAX_PIXELS else []
        return words


def read_train_options(table: TomlTable) -> dict[str, Any]:
    """The options of a table of a TOML file, those only that it has.

    Raises:
        UserError: A value of another kind.
    """
    scale = table.numbers("crop_scale")
    if "crop_scale" in table.content and len(scale) != 2:
        raise table.error("crop_scale", "two numbers", list(scale))
    values = {
        "data_root": Path(table.text("data_root")),
        "device": table.text("device", choices=("auto", "cpu", "cuda", "mps", "xpu")),
        "precision": table.text("precision", choices=("auto", "fp32", "bf16", "fp16")),
        "crop_scale": scale,
        "max_pixels": table.integer("max_pixels", at_least=1),
        **{name: table.boolean(name) for name in ("flip", "official", "save_memory")},
    }
    table.refuse_unread()
    return {name: value for name, value in values.items() if name in table.content}


def require_trained(
    options: TrainOptions, methods: Sequence[str], trained: Collection[str]
) -> None:
    """Raise if there are options of training and no method to train.

    Raises:
        UserError: There are.
    """
    if options != TrainOptions() and not set(trained) & set(methods):
        raise UserError(
            f"{' '.join(options.words())} is for methods that are trained through the model, and "
            f"{', '.join(methods[:3])} is not; name one, such as coop"
        )
