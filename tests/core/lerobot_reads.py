"""What LeRobot's own reader makes of a folder; run in LeRobot's own environment by test_lerobot.py."""

import json
import sys
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

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

folder, row = sys.argv[1], int(sys.argv[2])
data = LeRobotDataset("here/episodes", root=folder)
ahead = LeRobotDataset("here/episodes", root=folder, delta_timestamps={"action": [0, 1 / data.fps, 2 / data.fps]})
item = data[row]
told = {
    "rows": len(data),
    "episodes": data.num_episodes,
    "fps": data.fps,
    "task": item["task"],
    "episode": int(item["episode_index"]),
    "action": item["action"].tolist(),
    "success": bool(item["success"]),
    "state": item["observation.state"].tolist(),
    "ahead": list(ahead[row]["action"].shape),
    "pictures": {
        name.removeprefix("observation.images."): (255 * item[name]).round().byte().permute(1, 2, 0).flatten().tolist()
        for name in data.meta.camera_keys
    },
}
print(json.dumps(told))
