import sys

import pytest
from torch import nn

from mpisign.workload import models

OWN = """
import torch
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))

def for_ten():
    return nn.Linear(1, 10)

def no_model(num_classes):
    return num_classes

def two(num_classes):
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_models", None)


@pytest.mark.usefixtures("own")
def test_a_model_of_ones_own():
    built = models.build("own_models:small", 8, classes=7)
    assert isinstance(built, nn.Module)
    assert sum(parameter.numel() for parameter in built.parameters()) == 7 * (3 * 8 * 8 + 1)
    models.check("own_models:small", 8, batch_size=2)
    assert models.label("own_models:small") == "own_models-small"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("name", "fault"), [
    ("own_models:nothing", "module 'own_models' has no attribute 'nothing'"),
    ("no_such_module:small", "ModuleNotFoundError"),
    ("own_models:for_ten", "TypeError"),
    ("own_models:no_model", "makes no torch.nn.Module, but int"),
    ("own_models:two", "RuntimeError: first line second line"),
    (":", "ValueError: Empty module name"),
    ("nonsense", "one of your own is package.module:function"),
])  # fmt: skip
def test_a_model_that_cannot_be_made_is_told_in_one_line(name, fault):
    with pytest.raises(ValueError, match=r"^model: ") as raised:
        models.check(name, 8, batch_size=1)
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("own")
def test_a_size_that_a_model_does_not_take_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"^image_size: own_models:small takes no batch") as raised:
        models.check("own_models:small", 9, batch_size=1)
    assert "\n" not in str(raised.value)
