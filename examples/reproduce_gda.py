"""GDA against zero-shot CLIP on one dataset, as in its paper's tables: 1 to 16 shots, three seeds.

python examples/reproduce_gda.py features/dtd/ViT-B-16-openai.h5

The store comes from `fewshot extract --dataset dtd`. Wang et al., ICLR 2024, https://arxiv.org/abs/2402.04087.
The paper tunes alpha on the whole validation split; this script cross-validates it on the few
shots, so it uses no labels but those. Put `full-val` for `cv` to do as the paper.
"""

import sys

from cache.store import FeatureStore
from fewshot import configure, evaluate
from fewshot.metrics import mean_interval


def main(path: str, shots: tuple[int, ...] = (1, 2, 4, 8, 16)) -> dict[int, float]:
    """Print a line per number of shots; return the mean accuracies, 0 shots being zero-shot."""
    store = FeatureStore.open(path)
    zero_shot = evaluate(store, configure("zero-shot", logit_scale=store.logit_scale))
    means = {0: zero_shot.accuracy}
    print(f"{store.dataset}, {store.model}: zero-shot {100 * zero_shot.accuracy:.1f} %")
    gda = configure("gda", logit_scale=store.logit_scale)
    for k in shots:
        accuracies = [evaluate(store, gda, shots=k, seed=seed).accuracy for seed in (1, 2, 3)]
        means[k], half = mean_interval(accuracies)
        print(f"{k:2d} shots: {100 * means[k]:.1f} ± {100 * half:.1f} %")
    return means


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "features/dtd/ViT-B-16-openai.h5")
