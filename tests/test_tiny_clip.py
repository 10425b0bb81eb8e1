from pathlib import Path
from random import Random

import open_clip
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from tiny_clip import fonts, words
from tiny_clip.captions import describe, fits
from tiny_clip.draw import draw, draw_digits
from tiny_clip.train import (
    CONTEXT_LENGTH,
    EMBEDDING,
    contrastive_loss,
    encode_captions,
    save,
    standardize,
)

FOLDER = Path(__file__).resolve().parents[1] / "cache" / "tiny"
HELD_OUT = 7_654_321


@pytest.fixture(scope="module")
def tiny() -> open_clip.CLIP:
    model = open_clip.create_model(f"local-dir:{FOLDER}")
    return model.eval()


@torch.no_grad()
def best_caption(model: open_clip.CLIP, pictures: Tensor, texts: list[str]) -> Tensor:
    """For each picture, the index of the nearest text."""
    tokens = open_clip.get_tokenizer(f"local-dir:{FOLDER}")(texts)
    images = model.encode_image(standardize(pictures), normalize=True)
    nearest: Tensor = (images @ model.encode_text(tokens, normalize=True).T).argmax(dim=1)
    return nearest


def test_the_shipped_weights_take_at_most_ten_megabytes() -> None:
    assert (FOLDER / "open_clip_model.safetensors").stat().st_size <= 10_000_000


def test_stock_open_clip_loads_the_model_its_preprocessing_and_its_tokenizer() -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER}")
    tokens = open_clip.get_tokenizer(f"local-dir:{FOLDER}")(["the number three"])
    image = preprocess(Image.new("RGB", (8, 8), "white"))
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image, torch.ones(3, 32, 32))
    assert tokens.shape == (1, CONTEXT_LENGTH)
    assert (
        model.encode_image(image[None]).shape == model.encode_text(tokens).shape == (1, EMBEDDING)
    )


def test_unseen_drawn_digits_are_named_far_above_chance(tiny: open_clip.CLIP) -> None:
    pictures, digits = draw_digits(400, Generator().manual_seed(HELD_OUT))
    guesses = best_caption(tiny, pictures, [f"a photo of the number {n}." for n in words.DIGITS])
    assert (guesses == digits).double().mean() > 0.5


def test_numerals_name_digits_as_words_do(tiny: open_clip.CLIP) -> None:
    pictures, digits = draw_digits(400, Generator().manual_seed(HELD_OUT))
    guesses = best_caption(tiny, pictures, [f"a photo of the digit {n}." for n in range(10)])
    assert (guesses == digits).double().mean() > 0.5


def test_captions_of_shape_and_color_are_told_apart(tiny: open_clip.CLIP) -> None:
    pictures, truth = draw(4000, Generator().manual_seed(HELD_OUT))
    pairs = [(c, s) for c in ("red", "blue") for s in ("circle", "square")]
    colors = [words.COLOR_NAMES.index(color) for color, _ in pairs]
    names = [words.NAMES.index(shape) for _, shape in pairs]
    right = (truth[:, [words.INK]] == torch.tensor(colors)) & (
        truth[:, [words.NAME]] == torch.tensor(names)
    )
    chosen = right.any(dim=1)
    assert chosen.sum() >= 10
    guesses = best_caption(tiny, pictures[chosen], [f"a {c} {s}" for c, s in pairs])
    assert (guesses == right[chosen].int().argmax(dim=1)).double().mean() > 0.6


def test_equal_seeds_draw_equal_pictures_and_other_seeds_others() -> None:
    first, truth = draw(64, Generator().manual_seed(3))
    again, truth_again = draw(64, Generator().manual_seed(3))
    other, _ = draw(64, Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert torch.equal(truth, truth_again)
    assert not torch.equal(first, other)


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    draw(16, Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_group_and_every_digit_is_drawn() -> None:
    _, truth = draw(1000, Generator().manual_seed(0))
    assert set(truth[:, words.GROUP].tolist()) == set(range(len(words.GROUPS)))
    digits = truth[truth[:, words.GROUP] == words.DIGIT, words.NAME]
    assert set(digits.tolist()) == set(range(10))


def test_every_font_has_every_character_it_is_asked_for() -> None:
    masks, names, _ = fonts.glyphs()
    first_shape = words.NAMES_OF[words.SHAPE].start
    assert set(names.tolist()) == set(range(first_shape))
    assert len(masks) == len(fonts.FONTS) * (first_shape + len(words.LETTERS))
    assert masks.amax(dim=(1, 2)).min() > 0.5


def test_every_caption_fits_its_own_picture_and_says_what_it_states() -> None:
    _, truth = draw(300, Generator().manual_seed(1))
    rng = Random(0)
    described = [describe(facts, rng) for facts in truth.tolist()]
    assert fits(torch.tensor([said for _, said in described]), truth).diagonal().all()
    for text, said in described:
        if said[words.INK] != words.UNSAID:
            assert words.COLOR_NAMES[said[words.INK]] in text
        if said[words.NAME] != words.UNSAID:
            name = words.NAMES[said[words.NAME]]
            assert name in text or str(said[words.NAME]) in text


def test_a_caption_fits_exactly_the_pictures_that_agree_with_all_it_states() -> None:
    generator = Generator().manual_seed(2)
    said = torch.randint(-1, 2, (40, 3), generator=generator)
    truth = torch.randint(-1, 2, (50, 3), generator=generator)
    expected = [
        [all(s in (-1, t) for s, t in zip(row, facts, strict=True)) for facts in truth.tolist()]
        for row in said.tolist()
    ]
    assert fits(said, truth).tolist() == expected


def test_with_one_match_each_the_loss_is_clips() -> None:
    similarity = torch.randn(6, 6, generator=Generator().manual_seed(0))
    labels = torch.arange(6)
    rows = torch.nn.functional.cross_entropy(similarity, labels)
    columns = torch.nn.functional.cross_entropy(similarity.T, labels)
    expected = (rows + columns) / 2
    torch.testing.assert_close(contrastive_loss(similarity, torch.eye(6) > 0), expected)


def test_captions_are_encoded_as_open_clip_encodes_them(tiny: open_clip.CLIP) -> None:
    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    tokens = tokenizer(["a red circle on a blue background", "3"])
    expected = tiny.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encode_captions(tiny, tokens), expected, atol=1e-5, rtol=0)


def test_a_saved_model_loads_again(tiny: open_clip.CLIP, tmp_path: Path) -> None:
    save(tiny, tmp_path)
    again = open_clip.create_model(f"local-dir:{tmp_path}")
    for name, value in tiny.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)
