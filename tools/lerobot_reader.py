"""LeRobot's own reader, where torchvision is not: imported in LeRobot's own environment (`lerobot_environment`)."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch


class ToTensor:
    """The one thing LeRobot's reader takes from torchvision, which we do without."""

    def __call__(self, picture: object) -> torch.Tensor:
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


class Transforms(ModuleType):
    ToTensor, Transform = ToTensor, object


for name in ("torchvision", *(f"torchvision.transforms{part}" for part in ("", ".v2", ".v2.functional"))):
    sys.modules[name] = Transforms(name)
    sys.modules[name].__spec__, sys.modules[name].__path__ = ModuleSpec(name, None), []
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, sys.modules[name])

LeRobotDataset = import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
