"""Stage 2: few-shot methods on cached features; never imports an encoder."""

from fewshot.classifier import Classifier, LinearClassifier, Method, predict
from fewshot.evaluate import evaluate
from fewshot.methods import GDA, METHODS, NearestMean, Ridge, ZeroShot
from fewshot.results import Result
from fewshot.sample_file import read_sample, write_sample
from fewshot.sampling import Sample, base_new, draw
from fewshot.settings import configure
from fewshot.support import SupportSet
from fewshot.tuning import PROTOCOLS, tune

__all__ = [
    "GDA",
    "METHODS",
    "PROTOCOLS",
    "Classifier",
    "LinearClassifier",
    "Method",
    "NearestMean",
    "Result",
    "Ridge",
    "Sample",
    "SupportSet",
    "ZeroShot",
    "base_new",
    "configure",
    "draw",
    "evaluate",
    "predict",
    "read_sample",
    "tune",
    "write_sample",
]
