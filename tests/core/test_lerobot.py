"""LeRobot's own reader opens our episodes, in an environment of its own: it asks for packages that we do without."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys import SIDE, an_episode
from tools.lerobot_environment import lerobot_python
from wovr_core.artifacts import write_episodes
from wovr_core.artifacts.episodes import UNNAMED
from wovr_core.cameras import apart
from wovr_core.embodiment import LIBERO

READER = Path(__file__).with_name("lerobot_reads.py")


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory) -> Path:
    """A Python that has LeRobot."""
    try:
        return lerobot_python(tmp_path_factory.mktemp("lerobot"))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("cameras", [UNNAMED, LIBERO.cameras], ids=["one camera", "two cameras"])
def test_lerobots_reader_sees_what_was_written(lerobot, tmp_path, cameras):
    torch.manual_seed(0)
    episodes = [an_episode(steps=8, success_at=5), an_episode(steps=16, instruction="put it back", shade=90)]
    episodes = [
        replace(
            episode,
            frames=torch.randint(0, 256, (len(episode.frames), 3, SIDE, SIDE * len(cameras)), dtype=torch.uint8),
        )
        for episode in episodes
    ]
    write_episodes(tmp_path / "episodes", episodes, source="here", policy_digest="c0ffee", fps=20, cameras=cameras)
    reader = subprocess.run(
        [lerobot, READER, tmp_path / "episodes", "12"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert reader.returncode == 0, reader.stderr[-2000:]
    seen, second = json.loads(reader.stdout.splitlines()[-1]), episodes[1]
    assert (seen["rows"], seen["episodes"], seen["fps"]) == (9 + 17, 2, 20)
    assert (seen["episode"], seen["task"], seen["success"]) == (1, "put it back", False)
    assert seen["action"] == second.actions[3].tolist() and seen["ahead"] == [3, 3]
    assert seen["state"] == second.pose[3].tolist()
    for name, picture in zip(cameras, apart(second.frames[3]), strict=True):
        assert seen["pictures"][name] == picture.permute(1, 2, 0).flatten().tolist(), "every pixel"
    assert len(seen["pictures"]) == len(cameras)
