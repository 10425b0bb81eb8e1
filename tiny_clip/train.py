"""Trains the bundled tiny CLIP from nothing, on pictures drawn as it goes.

    python -m tiny_clip.train --out cache/tiny --seed 0

Draws `STEPS * BATCH` pictures, each seen once, writes a caption for each, and trains both towers
with CLIP's symmetric contrastive loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020), in
which every caption that is true of a picture counts as a match, not only its own. Beside it a
linear classifier of the things drawn is trained on the image features, and thrown away at the end:
without one the small image tower takes many times longer to find shapes worth telling apart.

Takes half an hour on two CPU cores that other work keeps busy, less on free ones; with the former,
OMP_WAIT_POLICY=PASSIVE in the environment helps much. It logs its progress and ends with the
zero-shot accuracy on drawn digits that it has not trained on, the logit scale and the size of the
file.
"""

import argparse
import json
import logging
import math
import time
from itertools import chain
from pathlib import Path
from random import Random

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tiny_clip.captions import describe, fits
from tiny_clip.draw import draw, draw_digits
from tiny_clip.ink import IMAGE_SIZE
from tiny_clip.words import DIGITS, NAME, NAMES, UNSAID

log = logging.getLogger(__name__)

CONTEXT_LENGTH = 32
VISION = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "width": 128,
    "head_width": 32,
    "layers": 4,
}
TEXT = {
    "context_length": CONTEXT_LENGTH,
    "vocab_size": 49408,
    "width": 64,
    "heads": 4,
    "layers": 2,
}
EMBEDDING = 128
MODEL = {"embed_dim": EMBEDDING, "vision_cfg": VISION, "text_cfg": TEXT}
PREPROCESSING = {
    "size": IMAGE_SIZE,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
STEPS = 2500
BATCH = 128
WARM_UP = 100
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.1
MAX_LOGIT_SCALE = 100.0


def contrastive_loss(similarity: Tensor, fit: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy, the target shared evenly by all captions that fit.

    Args:
        similarity: (M, N) scaled cosines of M captions and N pictures.
        fit: (M, N) bool, with something true in every row and column.
    """
    target = fit.to(similarity.dtype)
    by_caption = cross_entropy(similarity, target / target.sum(dim=1, keepdim=True))
    by_picture = cross_entropy(similarity.T, target.T / target.T.sum(dim=1, keepdim=True))
    return (by_caption + by_picture) / 2


def train(seed: int, steps: int = STEPS, batch: int = BATCH) -> CLIP:
    """The trained model; the same seed, machine and thread count give the same weights."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    rng = Random(seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    model = CLIP(**MODEL)
    namer = nn.Linear(EMBEDDING, len(NAMES))
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, namer), lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
    model.train()
    started = time.monotonic()
    for step in range(steps):
        pictures, truth = draw(batch, generator)
        described = [describe(facts, rng) for facts in truth.tolist()]
        fit = fits(torch.tensor([said for _, said in described]), truth)
        features = model.encode_image(standardize(pictures))
        images = normalize(features, dim=-1)
        texts = encode_captions(model, tokenizer([text for text, _ in described]))
        loss = contrastive_loss(model.logit_scale.exp() * texts @ images.T, fit)
        loss = loss + cross_entropy(namer(features), truth[:, NAME], ignore_index=UNSAID)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        if step % 100 == 99:
            rate = (step + 1) * batch / (time.monotonic() - started)
            log.info("step %d/%d  loss %.3f  %.0f pictures/s", step + 1, steps, loss.item(), rate)
    return model.eval()


def encode_captions(model: CLIP, tokens: Tensor) -> Tensor:
    """Unit text features (M, D) as from `model.encode_text`, without working on the padding."""
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    last = model.ln_final(hidden)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    return normalize(last @ model.text_projection, dim=-1)


def standardize(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, 32, 32) uint8 as the image tower takes them."""
    return pictures.float() / 127.5 - 1


@torch.no_grad()
def drawn_accuracy(model: CLIP, n: int, generator: Generator) -> float:
    """Zero-shot accuracy, 0..1, on n drawn digits."""
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    prompts = tokenizer([f"a photo of the number {name}." for name in DIGITS])
    pictures, digits = draw_digits(n, generator)
    images = model.encode_image(standardize(pictures), normalize=True)
    guesses = (images @ model.encode_text(prompts, normalize=True).T).argmax(dim=1)
    return float((guesses == digits).double().mean())


def save(model: CLIP, out: Path) -> Path:
    """Writes the folder that open_clip opens as `local-dir:OUT`; returns the weights' path."""
    out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    path = out / "open_clip_model.safetensors"
    save_file(weights, path)
    path.chmod(0o644)  # safetensors writes a temporary file, which only its owner may read
    return path


def _parameter_groups(*modules: nn.Module) -> list[dict[str, object]]:
    """Weight decay for the matrices, none for biases, norms, embeddings and the logit scale."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in chain.from_iterable(m.named_parameters() for m in modules):
        is_matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if is_matrix else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]


def _pace(step: int, steps: int) -> float:
    """The learning rate's share of its peak: linear warm-up, then half a cosine down to nought."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def main() -> None:
    """Draw, train, save, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for config and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    model = train(args.seed, args.steps)
    path = save(model, args.out)
    accuracy = drawn_accuracy(model, 2000, Generator().manual_seed(args.seed + 1_000_000))
    log.info("zero-shot accuracy on 2000 drawn digits: %.1f %%", 100 * accuracy)
    log.info("logit scale %.1f", model.logit_scale.exp().item())
    log.info("%s: %d bytes", path, path.stat().st_size)


if __name__ == "__main__":
    main()
