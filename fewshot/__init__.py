"""Stage 2: few-shot methods on cached features, and what comes of them; no encoder at import."""

from typing import TYPE_CHECKING, Any

from fewshot.adapters.adapter import Adapter, load_adapter
from fewshot.adapters.export.exporting import export
from fewshot.adapters.predict import predict
from fewshot.adapters.prediction import Prediction
from fewshot.adapters.predictor import open_adapter
from fewshot.automatic.pipeline import auto
from fewshot.classifier import Classifier, LinearClassifier, Method, classify
from fewshot.evaluation import base_to_new, evaluate, transfer
from fewshot.fitting import Fitted, fit
from fewshot.methods import (
    APE,
    APET,
    CLAP,
    GDA,
    GDAEM,
    METHODS,
    ZSLP,
    CLIPAdapter,
    CrossModal,
    LinearProbe,
    LPPlusPlus,
    NearestMean,
    ProKeR,
    Ridge,
    TaskRes,
    TextProbe,
    TipAdapter,
    TipAdapterF,
    TipX,
    TransCLIP,
    ZeroShot,
)
from fewshot.model_selection.tuning import PROTOCOLS, tune
from fewshot.results.log import Result
from fewshot.sample_file import read_sample, write_sample
from fewshot.sampling import Sample, base_new, draw, draw_imbalanced
from fewshot.settings import configure
from fewshot.support import SupportSet
from fewshot.text import Text

if TYPE_CHECKING:
    from fewshot.estimator import FewShotClassifier

__all__ = [
    "APE",
    "APET",
    "CLAP",
    "GDA",
    "GDAEM",
    "METHODS",
    "PROTOCOLS",
    "ZSLP",
    "Adapter",
    "CLIPAdapter",
    "Classifier",
    "CrossModal",
    "FewShotClassifier",
    "Fitted",
    "LPPlusPlus",
    "LinearClassifier",
    "LinearProbe",
    "Method",
    "NearestMean",
    "Prediction",
    "ProKeR",
    "Result",
    "Ridge",
    "Sample",
    "SupportSet",
    "TaskRes",
    "Text",
    "TextProbe",
    "TipAdapter",
    "TipAdapterF",
    "TipX",
    "TransCLIP",
    "ZeroShot",
    "auto",
    "base_new",
    "base_to_new",
    "classify",
    "configure",
    "draw",
    "draw_imbalanced",
    "evaluate",
    "export",
    "fit",
    "load_adapter",
    "open_adapter",
    "predict",
    "read_sample",
    "transfer",
    "tune",
    "write_sample",
]


def __getattr__(name: str) -> Any:
    """The one name that imports scikit-learn, which takes a second, and only when it is asked for.

    Raises:
        AttributeError: There is no such name.
    """
    if name == "FewShotClassifier":
        from fewshot.estimator import FewShotClassifier

        return FewShotClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
