"""One method on one store, in the tree that PYTHONPATH names: CPU seconds, and logits of the test.

A child process of `benchmarks/against.py`, so it imports nothing that only one commit has.
"""

import json
import sys
import time
from pathlib import Path

import torch

from cache.store import FeatureStore
from fewshot import configure
from fewshot.fitting import fit


def main() -> None:
    """Fit once for each number of shots; arguments and results are JSON."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    store = FeatureStore.open(Path(asked["store"]))
    method = configure(asked["method"], logit_scale=store.logit_scale)
    test = torch.from_numpy(store.split("test").features(unit=method.unit_norm))
    seconds, logits = 0.0, []
    for shots in asked["shots"]:
        start = time.process_time()
        fitted = fit(store, method, shots=shots, seed=1, tune=asked["tune"])
        logits.append(fitted.classifier.logits(test))
        seconds += time.process_time() - start
    torch.save(logits, asked["logits"])
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
