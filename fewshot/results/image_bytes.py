"""Results of one dataset name on images of other bytes, which do not compare."""

from collections import Counter
from collections.abc import Iterable

from cache.errors import count
from fewshot.results.log import Result


def different_images(results: Iterable[Result]) -> list[str]:
    """A sentence for each dataset whose results are on test images that differ byte by byte.

    Results that do not know the bytes of their images say nothing.
    """
    found: dict[str, Counter[str]] = {}
    for result in results:
        if result.image_digest is not None:
            found.setdefault(result.dataset, Counter())[result.image_digest] += 1
    return [
        f"{dataset}: results on {len(digests)} different sets of test images, byte by byte, do not "
        f"compare: {' and '.join(_said(*one) for one in digests.most_common())}"
        for dataset, digests in found.items()
        if len(digests) > 1
    ]


def _said(digest: str, results: int) -> str:
    return f"{digest} ({count(results, 'result')})"
