"""Models compute where their weights are, and data rests on the CPU.

The meta device stands for a GPU: it has shapes and no numbers, and mixing it with the CPU is the same error. So this
runs on any machine, and finds a tensor that was forgotten.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.toys import RULE, an_episode
from wovr_core.architecture import ArchitectureSettings, NextFrameSettings
from wovr_core.imagination.replay import init_state
from wovr_core.policy.tiny_vla import Shape, TinyVLA
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.settings import WorldModelSettings
from wovr_core.training.device import DeviceError, compute_device
from wovr_core.trajectory import Observation
from wovr_core.world_model.autoencoder import PatchAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.next_frame import NextFrameModel
from wovr_core.world_model.windows import EpisodeBatch

SIDE = 16
META = torch.device("meta")
WORDS = "put the red block on the green pad"
SHAPE = Shape(
    vocabulary=tuple(sorted(set(WORDS.split()))),
    words=8,
    image_size=SIDE,
    features=4,
    keypoints=2,
    hidden=8,
    pose_dim=2,
)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    """The meta device knows no other precision."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def episodes(count: int = 2):
    made = [an_episode(steps=16, success_at=12, closes=[9], shade=20 * i) for i in range(count)]
    return [replace(one, frames=one.frames.repeat_interleave(2, -1).repeat_interleave(2, -2)) for one in made]


def diffusion(**kwargs) -> DiffusionWorldModel:
    architecture = ArchitectureSettings(
        latent_channels=4, heads=2, head_dim=12, layers=1, ffn_dim=16, freq_dim=16, **kwargs
    )
    cfg = WorldModelSettings(architecture=architecture, pretrained="none", batch=2)
    return DiffusionWorldModel(cfg, PatchAutoencoder(channels=4, width=8, fine=8), action_dim=3)


def next_frame() -> NextFrameModel:
    architecture = NextFrameSettings(network="next-frame", width=8, layers=1, condition=32)
    cfg = WorldModelSettings(architecture=architecture, pretrained="none", batch=4)
    return NextFrameModel(cfg, cameras=1, image_size=SIDE, action_dim=3, pose_dim=2)


WORLDS = pytest.mark.parametrize(
    "build", [diffusion, lambda: diffusion(context_sees_future=True), next_frame], ids=["cached", "full", "next-frame"]
)


def seen() -> Observation:
    one = episodes()
    return Observation(
        frames=torch.stack([e.frames[0] for e in one]),
        instructions=tuple(e.instruction for e in one),
        pose=torch.stack([e.pose[0] for e in one]),
    )


def test_the_stand_in_refuses_what_a_gpu_would():
    with pytest.raises(RuntimeError, match="meta"):
        nn.Linear(2, 2, device=META)(torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(3, device=META) + torch.zeros(3)


@WORLDS
def test_a_world_model_learns_where_its_weights_are(build):
    model = build().to(META)
    lesson = model.lessons(EpisodeBatch.of(episodes()), steps=4, parts=[slice(None)], generator=torch.Generator())
    for step in range(3):
        loss = lesson(step)
        loss.backward()
        assert loss.device == META
    assert {p.grad.device for p in model.trained.parameters() if p.grad is not None} == {META}


@WORLDS
def test_a_dream_stays_where_its_world_model_is(build):
    model = build().to(META)
    starts = [init_state(e, 0, index=0, steps_left=16, rule="initial") for e in episodes()]
    state = model.begin(starts)
    for _ in range(2):
        state = model.imagine(state, torch.zeros(2, 8, 3), generator=torch.Generator())
    assert {value.device for name, value in vars(state).items() if name != "extra"} == {META}
    assert model.look(state, [3, 7]).device == META


def test_chance_is_drawn_on_the_cpu(monkeypatch):
    """So that a seed means the same dream on every device."""
    model = diffusion().to(META)
    drawn = torch.Generator().manual_seed(3)
    state = model.begin([init_state(e, 0, index=0, steps_left=16, rule="initial") for e in episodes()])
    model.imagine(state, torch.zeros(2, 8, 3), generator=drawn)
    alone = torch.Generator().manual_seed(3)
    torch.randn(2, 4, 2, 2, 2, generator=alone)
    assert torch.equal(drawn.get_state(), alone.get_state())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("exploration", ["step", "chunk"])
def test_a_policy_answers_where_it_was_asked(temperature, exploration):
    policy = TinyVLA(SHAPE.model_copy(update={"exploration": exploration, "turns": (1,)})).to(META)
    # what is chosen has no numbers on the meta device, so it is not brought home here
    at_work = replace(seen(), frames=seen().frames.to(META))
    decided = policy.act(at_work, temperature=temperature, generator=torch.Generator())
    assert {decided.actions.device, decided.choices.device, decided.log_prob.device} == {META}
    log_prob = policy.log_prob(at_work, torch.zeros(2, 8, 3, dtype=torch.long), temperature=1.0)
    log_prob.sum().backward()
    assert {p.grad.device for p in policy.parameters() if p.grad is not None} == {META}
    logits, _ = policy(torch.zeros(2, 3, SIDE, SIDE), (WORDS,) * 2, torch.zeros(2, 2))
    assert logits.device == META, "what comes from the CPU is brought here"


def test_pictures_are_judged_where_they_are():
    reward = SuccessClassifier(SHAPE, success_rule=RULE).to(META)
    detector = FrameErrorClassifier(threshold=0.5).to(META)
    pictures = seen().frames.to(META)
    assert reward.probability(pictures, [WORDS] * 2).device == META
    assert detector.score(pictures, seen().frames).device == META
    assert reward.logits(torch.zeros(2, 3, SIDE, SIDE), [WORDS] * 2).device == META


def test_a_step_computes_where_it_is_to(monkeypatch):
    """With a GPU that is made believe; what a step does there is in benchmarks/gpu."""
    monkeypatch.delenv("WOVR_DEVICE", raising=False)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert compute_device() == torch.device("cuda", 1) and chosen == [1]
    monkeypatch.setenv("WOVR_DEVICE", "cpu")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setenv("WOVR_DEVICE", "cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 2 of this machine has no GPU .* start 2 processes"):
        compute_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_when_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("WOVR_DEVICE", "auto")
    assert compute_device() == torch.device("cpu")
    monkeypatch.setenv("WOVR_DEVICE", "cuda")
    with pytest.raises(DeviceError, match=r"a GPU is asked for .* Or set compute\.device to cpu"):
        compute_device()
    monkeypatch.setenv("WOVR_DEVICE", "tpu")
    with pytest.raises(DeviceError, match="'tpu': use auto, cpu or cuda"):
        compute_device()
