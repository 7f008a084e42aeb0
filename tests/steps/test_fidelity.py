"""The table of a world model's fidelity, its two rulers, and its videos."""

import json

import av
import pytest

from tests.steps.conftest import collection
from wovr_core.artifacts import ArtifactError
from wovr_core.envs.splits import Split
from wovr_core.steps import fidelity
from wovr_core.steps.fidelity import depths_of, measure_fidelity


def test_depths_double_and_end_at_the_end():
    assert depths_of(48) == [8, 16, 32, 48]
    assert depths_of(512) == [8, 16, 32, 64, 128, 256, 512]
    assert depths_of(8) == [8] and depths_of(15) == [8]


@pytest.mark.slow
def test_a_dream_is_told_beside_its_rulers(shelf, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'wovr[fidelity]'")
    monkeypatch.setattr(fidelity, "find_spec", lambda name: None)  # the pictures are too small to flow
    episodes = collection(tmp_path / "episodes", [True, False] * 4, [Split.KEYFRAMES] * 8)
    facts = measure_fidelity(shelf / "world_model", [episodes], out=tmp_path / "told", reward=shelf / "reward")
    looks = {(row["depth"], row["who"]): row for row in facts["looks"]}
    assert looks.keys() == {(depth, who) for depth in (8, 16) for who in ("dream", "hold", "real")}
    assert looks[8, "hold"]["psnr"] == 60 and looks[8, "hold"]["lpips"] < 1e-6, "nothing moves in these episodes"
    assert looks[8, "dream"]["psnr"] < 40 and looks[8, "dream"]["lpips"] > 0, "the world model is untrained"
    assert looks[16, "dream"]["fid"] > looks[16, "real"]["fid"] >= 0 and looks[16, "real"]["psnr"] is None
    assert json.loads((tmp_path / "told" / "fidelity.json").read_text())["n"] == 8
    table = (tmp_path / "told" / "fidelity.md").read_text()
    assert "| 16 |" in table and "n = 8 held-out" in table and "Imagined against real outcome" in table
    with av.open(tmp_path / "told" / "real-imagined-difference-3.mp4") as film:
        frame = next(film.decode(video=0))
    assert frame.width >= 3 * 16


def test_too_few_episodes_are_told(shelf, tmp_path):
    with pytest.raises(ArtifactError, match="4 held-out episodes are too few"):
        measure_fidelity(shelf / "world_model", [shelf / "episodes"], out=tmp_path / "never")
    assert not (tmp_path / "never").exists()
