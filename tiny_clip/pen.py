"""How digits are written: pen strokes designed by hand, as splines that a picture can vary.

The only drawings of handwriting that the tiny CLIP learns from; every picture moves their control
points, and bends, slants and stretches the path (`tiny_clip.ink`).
"""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

TRACE_POINTS = 64

# Every digit as one or more ways of writing it; a way is a list of strokes, a stroke the control
# points of a smooth curve in a unit square (x to the right, y down).
_Stroke = list[tuple[float, float]]
PEN_DIGITS: dict[int, list[list[_Stroke]]] = {
    0: [
        [[(0.5, 0), (0.15, 0.15), (0.05, 0.5), (0.2, 0.88), (0.5, 1), (0.8, 0.88), (0.95, 0.5),
          (0.85, 0.15), (0.5, 0)]],
        [[(0.6, 0.02), (0.25, 0.2), (0.15, 0.6), (0.3, 0.95), (0.6, 0.95), (0.8, 0.6), (0.78, 0.2),
          (0.5, 0.03)]],
    ],
    1: [
        [[(0.5, 0), (0.5, 0.33), (0.5, 0.67), (0.5, 1)]],
        [[(0.25, 0.25), (0.42, 0.12), (0.55, 0)], [(0.55, 0), (0.55, 0.5), (0.55, 1)]],
        [[(0.25, 0.22), (0.55, 0)], [(0.55, 0), (0.55, 0.5), (0.55, 1)],
         [(0.25, 1), (0.55, 1), (0.85, 1)]],
    ],
    2: [
        [[(0.1, 0.25), (0.3, 0.03), (0.65, 0.02), (0.85, 0.25), (0.7, 0.5), (0.35, 0.78),
          (0.08, 1)], [(0.08, 1), (0.5, 1), (0.95, 1)]],
        [[(0.15, 0.2), (0.4, 0), (0.75, 0.1), (0.78, 0.4), (0.5, 0.75), (0.2, 0.97), (0.1, 0.85),
          (0.3, 0.78), (0.6, 0.95), (0.95, 0.95)]],
    ],
    3: [
        [[(0.12, 0.12), (0.45, 0), (0.8, 0.12), (0.75, 0.37), (0.4, 0.48), (0.78, 0.58),
          (0.88, 0.82), (0.5, 1), (0.1, 0.9)]],
        [[(0.1, 0.02), (0.5, 0.02), (0.85, 0.02)], [(0.85, 0.02), (0.65, 0.22), (0.42, 0.42)],
         [(0.42, 0.42), (0.78, 0.5), (0.85, 0.8), (0.5, 1), (0.1, 0.9)]],
    ],
    4: [
        [[(0.55, 0), (0.3, 0.35), (0.05, 0.65)], [(0.05, 0.65), (0.5, 0.65), (0.95, 0.65)],
         [(0.65, 0.3), (0.65, 0.65), (0.65, 1)]],
        [[(0.15, 0), (0.1, 0.3), (0.12, 0.52)], [(0.12, 0.52), (0.5, 0.52), (0.9, 0.5)],
         [(0.8, 0.02), (0.75, 0.5), (0.7, 1)]],
        [[(0.7, 0), (0.35, 0.35), (0.05, 0.7)], [(0.05, 0.7), (0.5, 0.7), (0.95, 0.68)],
         [(0.7, 0), (0.7, 0.5), (0.68, 1)]],
    ],
    5: [
        [[(0.9, 0), (0.5, 0), (0.2, 0.02)], [(0.2, 0.02), (0.18, 0.2), (0.15, 0.42)],
         [(0.15, 0.42), (0.5, 0.35), (0.85, 0.55), (0.8, 0.88), (0.45, 1), (0.08, 0.92)]],
        [[(0.85, 0.02), (0.55, 0.03), (0.3, 0.08), (0.2, 0.3), (0.3, 0.43), (0.65, 0.5),
          (0.75, 0.75), (0.5, 0.97), (0.12, 0.95)]],
    ],
    6: [
        [[(0.75, 0), (0.4, 0.15), (0.15, 0.5), (0.12, 0.8), (0.4, 1), (0.78, 0.9), (0.85, 0.68),
          (0.6, 0.5), (0.3, 0.58), (0.15, 0.75)]],
        [[(0.45, 0), (0.25, 0.35), (0.15, 0.7), (0.35, 0.98), (0.7, 0.92), (0.75, 0.68),
          (0.5, 0.58), (0.22, 0.75)]],
    ],
    7: [
        [[(0.08, 0.02), (0.5, 0.02), (0.92, 0.02)], [(0.92, 0.02), (0.65, 0.45), (0.4, 1)]],
        [[(0.08, 0.05), (0.5, 0.05), (0.9, 0.02)], [(0.9, 0.02), (0.62, 0.45), (0.45, 1)],
         [(0.3, 0.5), (0.6, 0.48), (0.88, 0.46)]],
        [[(0.08, 0.2), (0.12, 0.05), (0.5, 0.08), (0.88, 0.03)], [(0.88, 0.03), (0.6, 0.4),
          (0.5, 0.7), (0.48, 1)]],
    ],
    8: [
        [[(0.5, 0.47), (0.2, 0.3), (0.25, 0.05), (0.5, 0), (0.75, 0.05), (0.8, 0.3), (0.5, 0.47),
          (0.15, 0.65), (0.15, 0.92), (0.5, 1), (0.85, 0.92), (0.85, 0.65), (0.5, 0.47)]],
        [[(0.82, 0.12), (0.5, 0), (0.2, 0.15), (0.35, 0.4), (0.65, 0.6), (0.8, 0.82), (0.5, 1),
          (0.2, 0.85), (0.35, 0.6), (0.65, 0.4), (0.82, 0.12)]],
    ],
    9: [
        [[(0.85, 0.25), (0.6, 0.02), (0.25, 0.08), (0.15, 0.3), (0.35, 0.5), (0.7, 0.45),
          (0.85, 0.25)], [(0.85, 0.25), (0.82, 0.6), (0.7, 1)]],
        [[(0.8, 0.2), (0.5, 0), (0.2, 0.15), (0.2, 0.4), (0.5, 0.5), (0.8, 0.3), (0.83, 0.6),
          (0.7, 0.92), (0.4, 1), (0.15, 0.9)]],
    ],
}  # fmt: skip


@cache
def pen_strokes() -> tuple[Tensor, Tensor, Tensor]:
    """The ways of writing digits as splines, which are linear in their control points.

    Returns:
        Spline matrices (W, P, K) and control points (W, K, 2) in [-1, 1], padded with zeros, such
        that `matrices @ controls` are points along the pen's path; the digit (W,) of each way.
    """
    ways = [(digit, way) for digit, ways in PEN_DIGITS.items() for way in ways]
    width = max(sum(map(len, way)) for _, way in ways)
    matrices = torch.zeros(len(ways), TRACE_POINTS, width)
    controls = torch.zeros(len(ways), width, 2)
    for w, (_, way) in enumerate(ways):
        lengths = [sum(math.dist(a, b) for a, b in pairwise(s)) for s in way]
        shares = np.round(np.cumsum([0.0, *lengths]) / sum(lengths) * TRACE_POINTS).astype(int)
        k = 0
        for stroke, start, stop in zip(way, shares[:-1], shares[1:], strict=True):
            matrices[w, start:stop, k : k + len(stroke)] = _catmull_rom(len(stroke), stop - start)
            controls[w, k : k + len(stroke)] = torch.tensor(stroke) * 2 - 1
            k += len(stroke)
    return matrices, controls, torch.tensor([digit for digit, _ in ways])


def _catmull_rom(n_controls: int, n_points: int) -> Tensor:
    """(n_points, n_controls) weights of a Catmull-Rom spline through its control points."""
    weights = torch.zeros(n_points, n_controls)
    for row, t in enumerate(torch.linspace(0, n_controls - 1, n_points).tolist()):
        i = min(int(t), n_controls - 2)
        u = t - i
        blend = (
            (-u + 2 * u**2 - u**3) / 2,
            (2 - 5 * u**2 + 3 * u**3) / 2,
            (u + 4 * u**2 - 3 * u**3) / 2,
            (-(u**2) + u**3) / 2,
        )
        for offset, weight in zip(range(-1, 3), blend, strict=True):
            weights[row, min(max(i + offset, 0), n_controls - 1)] += weight
    return weights
