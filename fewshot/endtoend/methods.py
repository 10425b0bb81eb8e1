"""The end-to-end methods by name."""

from collections.abc import Mapping
from dataclasses import fields, replace

from cache.errors import unknown
from fewshot.endtoend.clip import EndToEnd
from fewshot.endtoend.clip_lora import CLIPLoRA
from fewshot.endtoend.cocoop import CoCoOp
from fewshot.endtoend.coop import CoOp
from fewshot.endtoend.kgcoop import KgCoOp
from fewshot.endtoend.prograd import ProGrad
from fewshot.settings import with_settings

METHODS: dict[str, type[EndToEnd]] = {
    "coop": CoOp,
    "cocoop": CoCoOp,
    "kgcoop": KgCoOp,
    "prograd": ProGrad,
    "clip-lora": CLIPLoRA,
}


def configure(name: str, settings: Mapping[str, str], *, seed: int) -> EndToEnd:
    """The method of that name with some of its fields set, and its seed unless that is among them.

    Raises:
        UserError: No such method, no such field, or a value that the field cannot take.
    """
    if name not in METHODS:
        raise unknown("end-to-end method", name, METHODS)
    method = METHODS[name]()
    if "seed" in {field.name for field in fields(method)}:
        method = replace(method, seed=seed)
    return with_settings(method, settings, name)
