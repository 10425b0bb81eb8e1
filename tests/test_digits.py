import pickle
from collections import Counter
from pathlib import Path

import numpy as np

from cache.datasets.manifest import load_manifest
from cache.datasets.resolving import resolve


def test_digits_are_bundled(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    manifest = load_manifest("digits")
    source = resolve(manifest, tmp_path / "absent")
    assert source.classnames[0] == "zero"
    assert source.classnames[9] == "nine"
    assert {s: len(items) for s, items in source.splits.items()} == dict(manifest.sizes)
    assert source.origin == "scikit-learn's digits, stratified 50/20/30"
    digits = load_digits()
    for items in source.splits.values():
        for item in items[::50]:
            row = int(item.path.removeprefix("digits/").removesuffix(".png"))
            assert digits.target[row] == item.label
            pixels = np.asarray(source.read(item.path))
            assert pixels.shape == (8, 8, 3)
            np.testing.assert_array_equal(
                pixels[..., 0], [[round(v / 16 * 255) for v in line] for line in digits.images[row]]
            )
            assert source.size(item.path) == 64
    assert pickle.loads(pickle.dumps(source)).read("digits/0007.png").size == (8, 8)


def test_digits_are_stratified() -> None:
    source = resolve(load_manifest("digits"), Path("absent"))
    total: Counter[int] = Counter()
    for items in source.splits.values():
        total.update(item.label for item in items)
    for split, share in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
        counts = Counter(item.label for item in source.splits[split])
        assert all(abs(counts[c] - share * total[c]) <= 1 for c in range(10))
