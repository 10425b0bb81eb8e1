"""Nearest neighbors by cosine, in blocks: never the matrix of all pairs; and a graph of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.support import SupportSet

PAIRS = 2**24  # cosines at a time, 64 MiB of them


def nearest(
    features: Tensor, among: Tensor, k: int, *, leave_out_itself: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and rows, both (M, k) and the nearest first, of the neighbors of each feature.

    Args:
        features: (M, D), unit norm.
        among: (N, D), unit norm, the candidates.
        k: How many; all candidates where there are fewer.
        leave_out_itself: The features are the candidates, and none is its own neighbor.
    """
    k = min(k, len(among) - leave_out_itself)
    cosines, rows = features.new_empty(0, k), torch.empty(0, k, dtype=torch.int64)
    parts = [(cosines, rows.to(features.device))]
    step = max(1, PAIRS // max(1, len(among)))
    for start in range(0, len(features), step):
        block = features[start : start + step] @ among.T
        if leave_out_itself:
            block.diagonal(start).fill_(-torch.inf)
        values, indices = block.topk(k, dim=1)
        parts.append((values, indices))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """Affinities of M queries with one another and with what is labeled.

    Attributes:
        affinities: (M, M) sparse, W + W' among the queries.
        votes: (M, C) what the labeled images among whose nearest a query is add to its sum.
        neighbors: n.
    """

    affinities: Tensor
    votes: Tensor | float
    neighbors: int

    def sums(self, z: Tensor) -> Tensor:
        """(M, C) sums over each query's neighbors, the labeled ones too, of the (M, C) shares z."""
        sums: Tensor = torch.sparse.mm(self.affinities, z)
        return sums.add_(self.votes)


def build_graph(query: Tensor, support: SupportSet | None, neighbors: int) -> NeighborGraph:
    """The graph of (M, D) queries; no query is its own neighbor."""
    m = len(query)
    cosines, rows = nearest(query, query, neighbors, leave_out_itself=True)
    here = torch.arange(m, device=query.device).repeat_interleave(rows.shape[1])
    there, values = rows.flatten(), cosines.flatten()
    both = torch.stack([torch.cat([here, there]), torch.cat([there, here])])
    affinities = torch.sparse_coo_tensor(
        both, values.repeat(2), (m, m), check_invariants=False
    ).coalesce()
    votes: Tensor | float = 0.0
    if support is not None:
        features, labels = support.features, support.labels
        cosines, rows = nearest(features, query, neighbors)
        votes = query.new_zeros(m, support.n_classes)
        index = (rows.flatten(), labels.repeat_interleave(rows.shape[1]))
        votes.index_put_(index, cosines.flatten(), accumulate=True)
    return NeighborGraph(affinities, votes, neighbors)
