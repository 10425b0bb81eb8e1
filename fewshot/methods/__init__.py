"""The methods by name; each is a file with its paper's equations and little else."""

from fewshot.method import Method
from fewshot.methods.ape import APE
from fewshot.methods.ape_t import APET
from fewshot.methods.clap import CLAP
from fewshot.methods.clip_adapter import CLIPAdapter
from fewshot.methods.cross_modal import CrossModal
from fewshot.methods.gda import GDA
from fewshot.methods.gda_em import GDAEM
from fewshot.methods.linear_probe import LinearProbe
from fewshot.methods.lp_plus_plus import LPPlusPlus
from fewshot.methods.nearest_mean import NearestMean
from fewshot.methods.prediction_refiner import PredictionRefiner
from fewshot.methods.proker import ProKeR
from fewshot.methods.prolip import ProLIP
from fewshot.methods.ridge import Ridge
from fewshot.methods.stack import Stack
from fewshot.methods.taskres import TaskRes
from fewshot.methods.text_probe import TextProbe
from fewshot.methods.tip_adapter import TipAdapter
from fewshot.methods.tip_adapter_f import TipAdapterF
from fewshot.methods.tip_x import TipX
from fewshot.methods.transclip import TransCLIP
from fewshot.methods.two_stage import TwoStage
from fewshot.methods.ueo import UEO
from fewshot.methods.zero_shot import ZeroShot
from fewshot.methods.zs_lp import ZSLP

__all__ = [
    "APE",
    "APET",
    "CLAP",
    "GDA",
    "GDAEM",
    "METHODS",
    "UEO",
    "ZSLP",
    "CLIPAdapter",
    "CrossModal",
    "LPPlusPlus",
    "LinearProbe",
    "NearestMean",
    "PredictionRefiner",
    "ProKeR",
    "ProLIP",
    "Ridge",
    "Stack",
    "TaskRes",
    "TextProbe",
    "TipAdapter",
    "TipAdapterF",
    "TipX",
    "TransCLIP",
    "TwoStage",
    "ZeroShot",
]

METHODS: dict[str, type[Method]] = {
    "zero-shot": ZeroShot,
    "stack": Stack,
    "nearest-mean": NearestMean,
    "gda": GDA,
    "gda-em": GDAEM,
    "ueo": UEO,
    "two-stage": TwoStage,
    "ridge": Ridge,
    "proker": ProKeR,
    "tip-adapter": TipAdapter,
    "tip-adapter-f": TipAdapterF,
    "tip-x": TipX,
    "ape": APE,
    "ape-t": APET,
    "transclip": TransCLIP,
    "linear-probe": LinearProbe,
    "text-probe": TextProbe,
    "lp++": LPPlusPlus,
    "zs-lp": ZSLP,
    "clap": CLAP,
    "cross-modal": CrossModal,
    "refiner": PredictionRefiner,
    "taskres": TaskRes,
    "clip-adapter": CLIPAdapter,
    "prolip": ProLIP,
}
