import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_ENCODER = """
import sys
# Importing them now fails.
sys.modules.update(dict.fromkeys(["open_clip", "torchvision", "huggingface_hub"]))
"""
STAGE_2 = """
import torch
import fewshot
import fewshot.doctor.checkup
from torch.nn.functional import normalize
features = normalize(torch.randn(8, 4))
text = fewshot.Text(features[:2])
support = fewshot.SupportSet(features, torch.tensor([0, 1] * 4), 2)
for name, kind in fewshot.METHODS.items():
    method = kind(epochs=2) if hasattr(kind(), "epochs") else kind()
    tuned = fewshot.tune(method, support, text, protocol="cv")
    fewshot.classifier.classify(tuned.fit(support, text), features)
fewshot.GDA(shrinkage="oas").fit(support, None)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_stage_2_fits_and_tunes_and_the_doctor_looks_without_an_encoder_installed() -> None:
    result = run(WITHOUT_ENCODER + STAGE_2)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", ["open_clip", "torchvision", "huggingface_hub"])
def test_an_import_of_the_encoder_would_be_noticed(package: str) -> None:
    result = run(WITHOUT_ENCODER + f"import {package}")
    assert result.returncode == 1
    assert f"import of {package} halted" in result.stderr
