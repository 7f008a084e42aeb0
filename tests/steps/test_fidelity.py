"""The table of a world model's fidelity, its two rulers, and its videos."""

import json
from hashlib import sha256

import av
import pytest
import torch
from torch import Tensor

from tests.steps.conftest import collection
from wovr_core.artifacts import ArtifactError
from wovr_core.envs.splits import Split
from wovr_core.evaluation.official import Official
from wovr_core.evaluation.perceptual import ExtractorError
from wovr_core.steps import fidelity
from wovr_core.steps.fidelity import depths_of, measure_fidelity


def test_depths_double_and_end_at_the_end():
    assert depths_of(48) == [8, 16, 32, 48]
    assert depths_of(512) == [8, 16, 32, 64, 128, 256, 512]
    assert depths_of(8) == [8] and depths_of(15) == [8]


@pytest.mark.slow
def test_a_dream_is_told_beside_its_rulers(shelf, networks, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'wovr[fidelity]'")
    monkeypatch.setattr(fidelity, "find_spec", lambda name: None)  # the pictures are too small to flow
    episodes = collection(tmp_path / "episodes", [True, False] * 4, [Split.KEYFRAMES] * 8)
    facts = measure_fidelity(
        shelf / "world_model",
        [episodes],
        out=tmp_path / "told",
        reward=shelf / "reward",
        official=list(networks.values()),
    )
    rows = {(row["depth"], row["who"]): row for row in facts["rows"]}
    assert rows.keys() == {(depth, who) for depth in (8, 16) for who in ("dream", "hold", "real")}
    assert rows[8, "hold"]["psnr"] == 60 and rows[8, "hold"]["lpips"] < 1e-6, "nothing moves in these episodes"
    assert rows[8, "dream"]["psnr"] < 40 and rows[8, "dream"]["lpips"] > 0, "the world model is untrained"
    assert rows[16, "dream"]["fid"] > rows[16, "real"]["fid"] >= 0 and rows[16, "real"]["psnr"] is None
    assert rows[16, "dream"]["official"].keys() == {"lpips", "fid", "fvd"}
    assert json.loads((tmp_path / "told" / "fidelity.json").read_text())["n"] == 8
    table = (tmp_path / "told" / "fidelity.md").read_text()
    assert "| FVD-E | LPIPS | FID | FVD |" in table and "Without an E: LPIPS by" in table
    assert "| 16 |" in table and "n = 8 held-out" in table and "Imagined against real outcome" in table
    with av.open(tmp_path / "told" / "real-imagined-difference-3.mp4") as film:
        frame = next(film.decode(video=0))
    assert frame.width >= 3 * 16


def test_too_few_episodes_are_told(shelf, tmp_path):
    with pytest.raises(ArtifactError, match="4 held-out episodes are too few"):
        measure_fidelity(shelf / "world_model", [shelf / "episodes"], out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


class Eyes(torch.nn.Module):
    """Sees mean colours, and is called as VGG16 is."""

    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        assert return_lpips and not resize_images
        return x.flatten(2).mean(2)


class Inception(torch.nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and x.dtype == torch.uint8
        return x.float().flatten(2).mean(2)


class Motion(torch.nn.Module):
    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale and resize and return_features and x.shape[1] == 3 and x.shape[2] == 16
        return x.diff(dim=2).abs().flatten(3).mean(3).flatten(1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    named = {}
    for kind, net in {"lpips": Eyes(), "fid": Inception(), "fvd": Motion()}.items():
        file = tmp_path_factory.mktemp("networks") / f"{kind}.pt"
        torch.jit.script(net).save(str(file))
        named[kind] = f"{kind}={file}@{sha256(file.read_bytes()).hexdigest()}"
    return named


def test_published_networks_are_asked_as_the_field_asks_them(networks):
    official = Official(list(networks.values()))
    real = torch.randint(0, 256, (8, 16, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    dark = real // 2
    assert official.at_depth(8, dark, real).keys() == {"lpips", "fid"}, "I3D wants sixteen frames"
    told, floor = official.at_depth(16, dark, real), official.at_depth(16, real, real)
    colours = [film[:, 15].float().flatten(2).mean(2) for film in (dark, real)]
    assert told["lpips"] == pytest.approx(float((colours[0] - colours[1]).square().sum(1).mean()))
    assert told["fid"] > 100 * floor["fid"] > 0 and told["fvd"] > floor["fvd"] > 0 and "lpips" not in floor


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("vgg=a.pt@" + 64 * "0", "write KIND=FILE@SHA256"),
        ("fid=a.pt", "write KIND=FILE@SHA256"),
        ("fid=never.pt@" + 64 * "0", "there is no file never.pt"),
    ],
)
def test_a_network_is_named_by_kind_file_and_hash(named, said):
    with pytest.raises(ExtractorError, match=said):
        Official([named])


def test_a_network_that_is_not_the_one_meant_is_not_run(networks):
    file = networks["fid"].rpartition("@")[0]
    with pytest.raises(ExtractorError, match=r"not 0000.*run only if it is the one you meant"):
        Official([f"{file}@{64 * '0'}"])
