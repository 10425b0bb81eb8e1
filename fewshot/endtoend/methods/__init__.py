"""The end-to-end methods by name."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from cache.errors import unknown
from fewshot.checks import require_seed
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.methods.adapterbias import AdapterBias
from fewshot.endtoend.methods.adaptformer import AdaptFormer
from fewshot.endtoend.methods.clip_lora import CLIPLoRA
from fewshot.endtoend.methods.cocoop import CoCoOp
from fewshot.endtoend.methods.composition import Composition
from fewshot.endtoend.methods.convpass import Convpass
from fewshot.endtoend.methods.coop import CoOp
from fewshot.endtoend.methods.craft import CraFT
from fewshot.endtoend.methods.difffit import DiffFit
from fewshot.endtoend.methods.dp_bitfit import DPBitFit
from fewshot.endtoend.methods.dtl import DTL
from fewshot.endtoend.methods.efft import EFFT
from fewshot.endtoend.methods.ett import ETT
from fewshot.endtoend.methods.evp import EVP
from fewshot.endtoend.methods.fact import FacT
from fewshot.endtoend.methods.fine_tuning import BitFit, FullFineTuning, LNTune
from fewshot.endtoend.methods.full_delta import FullDelta
from fewshot.endtoend.methods.houlsby import Houlsby
from fewshot.endtoend.methods.inner_clip_adapter import InnerCLIPAdapter
from fewshot.endtoend.methods.kadaptation import KAdaptation
from fewshot.endtoend.methods.kgcoop import KgCoOp
from fewshot.endtoend.methods.krona import KronA
from fewshot.endtoend.methods.lion import LION
from fewshot.endtoend.methods.live_linear_probe import LiveLinearProbe
from fewshot.endtoend.methods.live_two_stage import LiveTwoStage
from fewshot.endtoend.methods.live_ueo import LiveUEO
from fewshot.endtoend.methods.lorand import LoRand
from fewshot.endtoend.methods.lst import LST
from fewshot.endtoend.methods.maple import MaPLe
from fewshot.endtoend.methods.patt import PATT
from fewshot.endtoend.methods.plot import PLOT
from fewshot.endtoend.methods.plot_plus_plus import PLOTPlusPlus
from fewshot.endtoend.methods.prefix import Prefix
from fewshot.endtoend.methods.prograd import ProGrad
from fewshot.endtoend.methods.promptsrc import PromptSRC
from fewshot.endtoend.methods.repadapter import RepAdapter
from fewshot.endtoend.methods.sct import SCT
from fewshot.endtoend.methods.side_tuning import SideTuning
from fewshot.endtoend.methods.ssf import SSF
from fewshot.endtoend.methods.two_stage_few_shot import TwoStageFewShot
from fewshot.endtoend.methods.u_tuning import UTuning
from fewshot.endtoend.methods.visual_prompt import VisualPrompt
from fewshot.endtoend.methods.vpt import VPTDeep, VPTShallow
from fewshot.endtoend.methods.vqt import VQT
from fewshot.settings import with_settings

METHODS: dict[str, type[EndToEnd]] = {
    "coop": CoOp,
    "cocoop": CoCoOp,
    "kgcoop": KgCoOp,
    "prograd": ProGrad,
    "craft": CraFT,
    "maple": MaPLe,
    "promptsrc": PromptSRC,
    "plot": PLOT,
    "plot++": PLOTPlusPlus,
    "clip-lora": CLIPLoRA,
    "live-linear-probe": LiveLinearProbe,
    "live-ueo": LiveUEO,
    "live-two-stage": LiveTwoStage,
    "ln-tune": LNTune,
    "2sfs": TwoStageFewShot,
    "bitfit": BitFit,
    "dp-bitfit": DPBitFit,
    "difffit": DiffFit,
    "full-fine-tuning": FullFineTuning,
    "full-delta": FullDelta,
    "krona": KronA,
    "kadaptation": KAdaptation,
    "fact": FacT,
    "efft": EFFT,
    "ssf": SSF,
    "repadapter": RepAdapter,
    "adaptformer": AdaptFormer,
    "houlsby-adapter": Houlsby,
    "lorand": LoRand,
    "u-tuning": UTuning,
    "convpass": Convpass,
    "sct": SCT,
    "adapterbias": AdapterBias,
    "inner-clip-adapter": InnerCLIPAdapter,
    "vpt-shallow": VPTShallow,
    "vpt-deep": VPTDeep,
    "prefix": Prefix,
    "ett": ETT,
    "patt": PATT,
    "visual-prompt": VisualPrompt,
    "evp": EVP,
    "lion": LION,
    "side-tuning": SideTuning,
    "lst": LST,
    "vqt": VQT,
    "dtl": DTL,
    "composition": Composition,
}


def configure(name: str, settings: Mapping[str, Any], *, seed: int) -> EndToEnd:
    """The method of that name with some of its fields set, and its seed unless that is among them.

    Raises:
        UserError: No such method, no such field, or a value that the field cannot take.
    """
    if name not in METHODS:
        raise unknown("end-to-end method", name, METHODS)
    method = METHODS[name]()
    if "seed" in {field.name for field in fields(method)}:
        method = replace(method, seed=seed)
    method = with_settings(method, settings, name)
    require_seed(getattr(method, "seed", seed))
    return method
