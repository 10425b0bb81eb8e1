"""A composition: in each block an adapter, LoRA and prompts, each of a width of its own or absent.

Zhang, Zhou and Liu, "Neural Prompt Search" (NOAH), 2022, https://arxiv.org/abs/2206.04673, whose
search space this is; `fewshot.endtoend.search` searches it. As in the authors' code the adapter is
behind the MLP with QuickGELU between its layers, LoRA has scale 1 and is on query, key and value,
and there are prompts at every block's input. That code has one A for the three; here each has its
own, as in CLIP-LoRA. To start as zero-shot CLIP the adapter's second layer, Xavier-uniform there,
is zero; prompts cannot start so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cache.errors import UserError, count
from fewshot.endtoend.clip import Clip
from fewshot.endtoend.parts.blocks import blocks_path, towers_of
from fewshot.endtoend.parts.branch import Branch, Branches, branch_block
from fewshot.endtoend.parts.deep_prompts import PromptedTransformer
from fewshot.endtoend.parts.elastic import ElasticBottleneck, ElasticLoRA, ElasticTokens, Place
from fewshot.endtoend.parts.image_tokens import ImageTokens
from fewshot.endtoend.parts.peft import Inserted, PEFTMethod
from fewshot.endtoend.parts.vit import uniform_tokens
from fewshot.endtoend.parts.weight_delta import linears, put

PRIMITIVES = {"image": ("adapter", "lora", "vpt"), "text": ("adapter", "lora")}  # by tower


@dataclass(frozen=True)
class Composition(PEFTMethod):
    """An adapter, LoRA and prompts in each block, all of widths of their own.

    Widths are one number for all blocks, or one for each with commas, from the input; 0 is none.

    Attributes:
        image_adapter: Hidden units behind each MLP of the image tower.
        image_lora: Rank beside query, key and value of the image tower.
        image_vpt: Prompt tokens at each block's input.
        text_adapter: As `image_adapter`, of the text tower.
        text_lora: As `image_lora`, of the text tower.
    """

    image_adapter: str = "8"
    image_lora: str = "2"
    image_vpt: str = "4"
    text_adapter: str = "0"
    text_lora: str = "0"

    name: ClassVar[str] = "composition"
    summary: ClassVar[str] = "Mixes three kinds of small additions, block by block, as you say."

    def __post_init__(self) -> None:
        super().__post_init__()
        towers = with_towers({name: getattr(self, name) for name in primitives()})["towers"]
        if towers != self.towers:
            raise UserError(
                f"towers must be {towers}, where there are widths above 0; got {self.towers}; "
                "change it, or the widths"
            )

    def widths(self, primitive: str) -> tuple[int, ...]:
        """The widths of a primitive, one for all blocks or one for each."""
        return _widths(primitive, getattr(self, primitive))

    def insert(self, clip: Clip) -> Inserted:
        """Adapters and LoRA of each tower, then the prompts."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters: dict[str, nn.Parameter] = {}
        for tower in towers_of(self.towers):
            parameters |= self._adapters(clip, tower, generator)
            parameters |= self._lora(clip, tower, generator)
        if self.towers != "text":
            parameters |= self._prompts(clip)
        return parameters, ()

    def _of_blocks(self, clip: Clip, primitive: str) -> dict[int, int]:
        """Number of a block -> the width of the primitive there, where that is above 0."""
        tower = primitive.partition("_")[0]
        blocks: Any = clip.model.get_submodule(blocks_path(clip.model, tower, self.name))
        widths, depth = self.widths(primitive), len(blocks)
        if len(widths) not in (1, depth):
            raise UserError(
                f"{primitive} has {count(len(widths), 'width')}, and the {tower} tower has "
                f"{count(depth, 'block')}; give one for each block, or one for all"
            )
        return {i: w for i, w in enumerate(widths * (depth // len(widths))) if w}

    def _adapters(
        self, clip: Clip, tower: str, generator: torch.Generator
    ) -> dict[str, nn.Parameter]:
        primitive, parameters = f"{tower}_adapter", dict[str, nn.Parameter]()
        path = blocks_path(clip.model, tower, self.name)
        for i, width in self._of_blocks(clip, primitive).items():

            def make(tokens: int, place: Place = (primitive, i), width: int = width) -> Branches:
                return {"mlp": Branch(ElasticBottleneck(tokens, place, width, generator), "after")}

            parameters |= branch_block(self.name, clip, path, i, make)[0]
        return parameters

    def _lora(self, clip: Clip, tower: str, generator: torch.Generator) -> dict[str, nn.Parameter]:
        primitive, widths = f"{tower}_lora", self._of_blocks(clip, f"{tower}_lora")
        plain = linears(clip.model, tower, "q,k,v", "all") if widths else {}
        deltas = {
            path: ElasticLoRA(layer, (primitive, i // 3), widths[i // 3], generator)
            for i, (path, layer) in enumerate(plain.items())
            if i // 3 in widths
        }
        return dict(put(clip.model, deltas)[0])

    def _prompts(self, clip: Clip) -> dict[str, nn.Parameter]:
        widths = self._of_blocks(clip, "image_vpt")
        if not widths:
            return {}
        vit = ImageTokens.of(clip, self.name)
        depth, most = len(vit.blocks), max(widths.values())
        drawn = uniform_tokens(depth, most, vit, self.seed).to(clip.device)
        tokens = {
            i: ElasticTokens(drawn[i, :w].clone(), ("image_vpt", i)) for i, w in widths.items()
        }
        room = [0] * depth

        def prompt(i: int) -> Tensor:
            learned: Tensor = tokens[i]() if i in tokens else drawn[i, :0]
            vit.make_room(len(learned) - room[i], [i])  # a supernet's widths change
            room[i] = len(learned)
            return learned

        row = PromptedTransformer(
            vit.tower.transformer, range(depth), most, prompt,
            learned=(), inserted=True, before=vit.before,
        )  # fmt: skip
        row.tokens = nn.ModuleList(tokens.values())
        vit.run_by(row)
        return {f"tokens.{i}": one.tokens for i, one in tokens.items()}


def primitives() -> list[str]:
    """The names of the fields that are widths."""
    return [f"{tower}_{kind}" for tower, kinds in PRIMITIVES.items() for kind in kinds]


def with_towers(widths: Mapping[str, str]) -> dict[str, str]:
    """Settings of these widths, of 0 for the other primitives, and of the towers they change.

    Raises:
        UserError: A text is no list of widths, or all are 0.
    """
    texts = dict.fromkeys(primitives(), "0") | dict(widths)
    changed = {name.partition("_")[0] for name, text in texts.items() if any(_widths(name, text))}
    if not changed:
        raise UserError("all widths are 0, so there is nothing to train; raise one")
    return texts | {"towers": "both" if len(changed) > 1 else changed.pop()}


def _widths(primitive: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise UserError(
            f"{primitive} must be whole numbers, 0 or more, of up to 9 digits, with commas "
            f"between, such as 8 or 8,8,0,4; got {text!r:.80}"
        )
    return tuple(map(int, words))
