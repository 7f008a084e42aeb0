"""The small world model: one frame a chunk, several cameras, the pose; and no chance."""

from dataclasses import replace

import pytest
import torch

from wovr_core.architecture import NextFrameSettings
from wovr_core.chunk import CHUNK
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import Settings, WorldModelSettings
from wovr_core.training.loop import train
from wovr_core.trajectory import InitState, to_unit
from wovr_core.world_model import next_frame
from wovr_core.world_model.next_frame import NextFrameModel
from wovr_core.world_model.statistics import ActionStatistics
from wovr_core.world_model.windows import EpisodeBatch

SIDE = 16
SMALL = NextFrameSettings(network="next-frame", width=8, layers=1, condition=32)


def a_model(batch: int = 16) -> NextFrameModel:
    torch.manual_seed(0)
    cfg = WorldModelSettings(pretrained="none", architecture=SMALL, batch=batch, rollout_dtype="float32")
    return NextFrameModel(cfg, cameras=2, image_size=SIDE, action_dim=3, pose_dim=2)


def moving_squares(count: int, chunks: int, generator: torch.Generator) -> EpisodeBatch:
    """A white square in both pictures, in one of them upside down, that goes where the actions say."""
    steps = chunks * CHUNK
    actions = (2 * torch.rand(count, chunks, 3, generator=generator) - 1).repeat_interleave(CHUNK, 1)
    pose = torch.cat([torch.full((count, 1, 2), 0.5), 0.5 + (actions[..., :2] * 0.02).cumsum(1)], 1).clamp(0.1, 0.9)
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    x, y = (((axis - pose[..., d, None]).abs() < 0.15) for d in (0, 1))
    square = (255 * (y[..., :, None] & x[..., None, :])).to(torch.uint8)[:, :, None].expand(-1, -1, 3, -1, -1)
    return EpisodeBatch(torch.cat([square, square.flip(-2)], -1), actions[:, :steps], pose)


def starts_of(episodes: EpisodeBatch) -> list[InitState]:
    return [
        InitState(
            instruction="go",
            reference=frames[0],
            memory=frames[:1].expand(4, -1, -1, -1),
            actions=torch.zeros(4, 3),
            pose=pose[:1].expand(5, -1),
            steps_left=16,
            episode=i,
            step=0,
            rule="initial",
        )
        for i, (frames, pose) in enumerate(zip(episodes.frames, episodes.pose, strict=True))
    ]


def test_it_learns_where_actions_lead_in_both_pictures(generator):
    episodes, model = moving_squares(64, 4, generator), a_model(batch=32)
    model.statistics.fit(episodes)
    lessons = model.lessons(episodes, steps=150, parts=[slice(None)], generator=generator)
    train(model.trained, lessons, name="test", steps=150, learning_rate=2e-3, generator=generator)
    unseen = moving_squares(16, 2, torch.Generator().manual_seed(9))
    state = model.begin(starts_of(unseen))
    for chunk in range(2):
        state = model.imagine(state, unseen.actions[:, chunk * CHUNK :][:, :CHUNK], generator=generator)
        real, dreamt = unseen.frames[:, (chunk + 1) * CHUNK], model.look(state, [CHUNK - 1])[:, 0]
        for view in (slice(0, SIDE), slice(SIDE, None)):
            off = (to_unit(dreamt) - to_unit(real))[..., view].square().mean()
            held = (to_unit(unseen.frames[:, 0]) - to_unit(real))[..., view].square().mean()
            assert off < 0.5 * held, f"chunk {chunk}: {off:.3f} against {held:.3f} of the held frame"
    assert (state.pose[:, -1] - unseen.pose[:, -1]).abs().mean() < 0.04


def test_before_it_has_learnt_anything_it_keeps_most_of_what_was_there(generator):
    episodes = moving_squares(2, 1, generator)
    frames = to_unit(episodes.frames[:, 0])
    after, pose = a_model().predict(frames, frames, episodes.pose[:, 0], episodes.actions[:, :CHUNK], dtype="float32")
    assert torch.allclose(after, frames * (1 - torch.tensor(-1.0).sigmoid()), atol=1e-6)
    assert pose.shape == (2, 2)


def test_a_dream_holds_no_chance_and_no_secret(generator):
    """The state is all there is: the same state and actions give the same dream, and a frame is of whole shades."""
    episodes, model = moving_squares(3, 2, generator), a_model()
    state = model.begin(starts_of(episodes))
    one, two = (model.imagine(state, episodes.actions[:, :CHUNK], generator=generator) for _ in range(2))
    assert torch.equal(one.memory, two.memory) and torch.equal(one.pose, two.pose)
    again = replace(one, future=one.future.clone(), extra={})
    assert torch.equal(model.look(one, [3, 7])[:, 0], model.look(again, [7])[:, 0]), "those between are the last one"
    assert torch.equal(to_unit(model.look(one, [7])[:, 0]), one.memory)
    rows = torch.tensor([2, 0])
    assert torch.allclose(
        model.imagine(state[rows], episodes.actions[rows, :CHUNK], generator=generator).memory,
        one.memory[rows],
        atol=0.01,
    )


def test_a_lesson_dreams_on_from_its_own_picture_and_no_gradient_goes_back_through_it(generator, monkeypatch):
    episodes, model = moving_squares(8, 2, generator), a_model()
    model.statistics.fit(episodes)
    asked, answered, predict = [], [], model.predict

    def watched(frames, first, pose, actions, *, dtype):
        asked.append((frames, pose))
        answered.append(predict(frames, first, pose, actions, dtype=dtype))
        return answered[-1]

    monkeypatch.setattr(model, "predict", watched)
    monkeypatch.setattr(next_frame, "NOISE", 0.0)
    model.loss(episodes, torch.arange(8), torch.zeros(8, dtype=torch.long), 2, generator=generator)
    (frames, pose), (dreamt, moved) = asked[1], answered[0]
    assert torch.equal(frames, dreamt.clamp(-1, 1)) and torch.equal(pose, moved)
    assert dreamt.requires_grad and not frames.requires_grad and not pose.requires_grad


def test_how_far_an_action_moves_is_measured_from_look_to_look(generator):
    often = moving_squares(16, 4, generator)
    seldom = replace(often, pose=often.pose[:, ::8].repeat_interleave(8, 1)[:, : often.pose.shape[1]], picture_stride=8)
    measured = []
    for episodes in (often, seldom):
        statistics = ActionStatistics(3, 2)
        statistics.fit(episodes)
        measured.append(statistics.reach)
    assert torch.allclose(measured[0], torch.tensor([0.02, 0.02]), atol=1e-4)
    assert torch.allclose(measured[1], measured[0], atol=2e-3)


def test_only_the_frame_it_dreams_is_judged():
    tree = {"world_model": {"pretrained": "none", "architecture": {"network": "next-frame"}}}
    for stride in (2, 4):
        with pytest.raises((SettingsError, ValueError), match="set it to 8"):
            Settings.model_validate(tree | {"reward": {"stride": stride}})
    assert Settings.model_validate(
        tree | {"reward": {"stride": 8, "hysteresis": 1}}
    ).world_model.architecture == NextFrameSettings(network="next-frame")
