"""Few-shot adaptation of CLIP on cached features.

`import fewshot` loads nothing: each name below is imported from its module when it is first used,
so that a command or a script pays for what it needs and no more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot.adapters.adapter import Adapter, load_adapter
    from fewshot.adapters.export.exporting import export
    from fewshot.adapters.image_results import Prediction
    from fewshot.adapters.opened_adapter import open_adapter
    from fewshot.adapters.predict import predict
    from fewshot.automatic.pipeline import auto
    from fewshot.classifier import Classifier, LinearClassifier, classify
    from fewshot.cross_dataset import transfer
    from fewshot.domain_adaptation import adapt
    from fewshot.estimator import FewShotClassifier
    from fewshot.evaluation import evaluate
    from fewshot.fitted import Fitted
    from fewshot.fitting import fit
    from fewshot.imbalance import draw_imbalanced
    from fewshot.inspection import inspect, verify
    from fewshot.method import Method
    from fewshot.methods import (
        APE,
        APET,
        CLAP,
        GDA,
        GDAEM,
        METHODS,
        UEO,
        ZSLP,
        CLIPAdapter,
        CrossModal,
        LinearProbe,
        LPPlusPlus,
        NearestMean,
        PredictionRefiner,
        ProKeR,
        ProLIP,
        Ridge,
        TaskRes,
        TextProbe,
        TipAdapter,
        TipAdapterF,
        TipX,
        TransCLIP,
        TwoStage,
        ZeroShot,
    )
    from fewshot.model_selection.protocols import PROTOCOLS
    from fewshot.model_selection.tuning import tune
    from fewshot.new_classes import base_to_new
    from fewshot.protocol import Protocol
    from fewshot.results.log import Result
    from fewshot.run import Run
    from fewshot.sample_file import read_sample, write_sample
    from fewshot.sampling import Sample, base_new, draw
    from fewshot.settings import configure
    from fewshot.support import SupportSet
    from fewshot.synthesizing import synthesize
    from fewshot.text import Text

__all__ = [
    "APE",
    "APET",
    "CLAP",
    "GDA",
    "GDAEM",
    "METHODS",
    "PROTOCOLS",
    "UEO",
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
    "PredictionRefiner",
    "ProKeR",
    "ProLIP",
    "Protocol",
    "Result",
    "Ridge",
    "Run",
    "Sample",
    "SupportSet",
    "TaskRes",
    "Text",
    "TextProbe",
    "TipAdapter",
    "TipAdapterF",
    "TipX",
    "TransCLIP",
    "TwoStage",
    "ZeroShot",
    "adapt",
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
    "inspect",
    "load_adapter",
    "open_adapter",
    "predict",
    "read_sample",
    "synthesize",
    "transfer",
    "tune",
    "verify",
    "write_sample",
]

_MODULES = {
    "fewshot.adapters.adapter": ("Adapter", "load_adapter"),
    "fewshot.adapters.export.exporting": ("export",),
    "fewshot.adapters.predict": ("predict",),
    "fewshot.adapters.image_results": ("Prediction",),
    "fewshot.adapters.opened_adapter": ("open_adapter",),
    "fewshot.automatic.pipeline": ("auto",),
    "fewshot.classifier": ("Classifier", "LinearClassifier", "classify"),
    "fewshot.estimator": ("FewShotClassifier",),
    "fewshot.domain_adaptation": ("adapt",),
    "fewshot.evaluation": ("evaluate",),
    "fewshot.new_classes": ("base_to_new",),
    "fewshot.cross_dataset": ("transfer",),
    "fewshot.fitted": ("Fitted",),
    "fewshot.fitting": ("fit",),
    "fewshot.inspection": ("inspect", "verify"),
    "fewshot.method": ("Method",),
    "fewshot.methods": (
        "APE",
        "APET",
        "CLAP",
        "CLIPAdapter",
        "CrossModal",
        "GDA",
        "GDAEM",
        "LPPlusPlus",
        "LinearProbe",
        "METHODS",
        "NearestMean",
        "PredictionRefiner",
        "ProKeR",
        "ProLIP",
        "Ridge",
        "TaskRes",
        "TextProbe",
        "TipAdapter",
        "TipAdapterF",
        "TipX",
        "TransCLIP",
        "TwoStage",
        "UEO",
        "ZSLP",
        "ZeroShot",
    ),
    "fewshot.model_selection.protocols": ("PROTOCOLS",),
    "fewshot.model_selection.tuning": ("tune",),
    "fewshot.results.log": ("Result",),
    "fewshot.protocol": ("Protocol",),
    "fewshot.run": ("Run",),
    "fewshot.sample_file": ("read_sample", "write_sample"),
    "fewshot.imbalance": ("draw_imbalanced",),
    "fewshot.sampling": ("Sample", "base_new", "draw"),
    "fewshot.settings": ("configure",),
    "fewshot.support": ("SupportSet",),
    "fewshot.synthesizing": ("synthesize",),
    "fewshot.text": ("Text",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from its module, once.

    Raises:
        AttributeError: There is no such name.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
