"""Looking up models by name."""

import subprocess
import sys
from pathlib import Path

import pytest

from recbole_llm.config import registry
from recbole_llm.config.declared import OURS
from recbole_llm.errors import SettingError

_LOOK_UP = """
import torch
from recbole_llm.config import registry
from recbole_llm.config.declared import OURS
registry.model_class("SASRec")
assert not torch.is_anomaly_enabled()
torch.autograd.set_detect_anomaly(True)
registry.model_class("GRU4Rec")
assert torch.is_anomaly_enabled()
"""


def test_looking_up_a_model_leaves_anomaly_detection_alone():
    """RecBole's SINE switches it on for everybody when it is imported, and every sequential model imports it."""
    repository = Path(__file__).resolve().parents[2]
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", _LOOK_UP], cwd=repository, timeout=120, check=False)
    assert child.returncode == 0


def test_our_models_come_first_and_classes_are_themselves():
    from recbole_llm.model.sequential_recommender.st2si.model import ST2SI

    assert registry.known_models()[: len(OURS)] == tuple(sorted(OURS))
    assert len(set(registry.known_models())) == len(registry.known_models())
    assert registry.model_class("ST2SI") is ST2SI
    assert registry.model_class(ST2SI) is ST2SI


@pytest.mark.parametrize(("name", "near"), [("st2si", "ST2SI"), ("SASREC", "SASRec"), ("Gru4Rec", "GRU4Rec")])
def test_unknown_name_tells_the_nearest(name, near):
    with pytest.raises(SettingError, match=f"no model '{name}'; did you mean '{near}'"):
        registry.model_class(name)
