"""What LeRobot's own reader makes of a folder; run in LeRobot's own environment by test_lerobot.py."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from tools.lerobot_reader import LeRobotDataset

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
