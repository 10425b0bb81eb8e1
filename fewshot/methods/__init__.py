"""The methods by name; each is a file with its paper's equations and little else."""

from fewshot.classifier import Method
from fewshot.methods.gda import GDA
from fewshot.methods.nearest_mean import NearestMean
from fewshot.methods.ridge import Ridge
from fewshot.methods.zero_shot import ZeroShot

__all__ = ["GDA", "METHODS", "NearestMean", "Ridge", "ZeroShot"]

METHODS: dict[str, type[Method]] = {
    "zero-shot": ZeroShot,
    "nearest-mean": NearestMean,
    "gda": GDA,
    "ridge": Ridge,
}
