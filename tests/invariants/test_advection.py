"""A future put together from what was seen, where it was or where the hand took it."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from wovr_core.architecture import ArchitectureSettings
from wovr_core.chunk import MEMORY
from wovr_core.settings import WorldModelSettings
from wovr_core.trajectory import InitState, to_unit
from wovr_core.world_model.autoencoder import ComponentAutoencoder
from wovr_core.world_model.conditioning import Conditions
from wovr_core.world_model.flow import Draws
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.pixels.advection import LAST, SHARPER, Advection, Sources, fit_grasp
from wovr_core.world_model.pixels.grasp import GOES, STAYS, UNKNOWN, gripper_commands
from wovr_core.world_model.windows import EpisodeBatch, Window, window_at

SIDE = 32  # pixels
REFERENCE, REMEMBERED, MOVED_REFERENCE, MOVED_MEMORY = range(4)
CARRIED = 7


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def lossless(frames: torch.Tensor) -> ComponentAutoencoder:
    codec = ComponentAutoencoder(channels=192)
    codec.components.copy_(torch.eye(192))
    codec.mean.copy_(torch.full((192,), float(frames.mean())))
    return codec


def hand(*, right: int, down: int) -> torch.Tensor:
    """Where in the picture it is: in one place until the memory ends, then so many pixels off, then twice as many."""
    pose = torch.full((1, 13, 2), 0.5)
    for frame, share in zip(LAST, (1, 2), strict=True):
        pose[:, frame] += share * torch.tensor([right, down]) / SIDE
    return pose


@pytest.mark.parametrize(
    ("source", "rolls"), [(REFERENCE, 0), (REMEMBERED, 0), (MOVED_REFERENCE, 1), (MOVED_MEMORY, 1)]
)
def test_each_source_is_seen_where_it_was_or_where_the_hand_has_gone(source, rolls):
    frames = pictures(2)
    codec = lossless(frames)
    reference, memory = codec.encode(frames[:, None])[:, :, 0][:, None]
    pose = hand(right=3, down=2)
    sources = Sources.of(reference, memory, Conditions(torch.rand(1, 13, 3), pose), pose[:, 0], codec)
    advection = Advection(12, patch=1, pose_dim=2)
    advection.decide.bias.data[: advection.SOURCES] = torch.where(
        torch.arange(advection.SOURCES) == source, 30.0, -30.0
    )
    mixed = advection(torch.zeros(1, 2, 16, 12), sources, torch.zeros(1, dtype=torch.long))
    shown = codec.decode_future(mixed, 2, frames=[3, 7])[0]
    for latent, share in enumerate((1, 2)):
        expected = frames[source % 2].roll((share * rolls * 2, share * rolls * 3), (1, 2))
        inner = (slice(None), slice(4, None), slice(6, None))  # what comes in at the edges is a guess
        assert torch.allclose(shown[latent][inner], expected[inner], atol=1e-4)


def test_what_is_held_is_seen_as_in_the_first_frame_moved_from_where_the_hand_shut():
    """And never where nothing is held, be the gates as they may."""
    frames = pictures(2)
    codec, pose = lossless(frames), hand(right=3, down=2)
    reference, memory = codec.encode(frames[:, None])[:, :, 0][:, None]
    shut_at = pose[:, 0] - torch.tensor([[2, 1]]) / SIDE
    sources = Sources.of(reference, memory, Conditions(torch.rand(1, 13, 3), pose), shut_at, codec)
    advection = Advection(12, patch=1, pose_dim=2)
    gates = torch.arange(advection.SOURCES)
    advection.decide.bias.data[: advection.SOURCES] = torch.where(gates == CARRIED, 30.0, -30.0)
    advection.decide.bias.data[REMEMBERED] = 0.0
    for held, latent, share in ((GOES, 0, 1), (GOES, 1, 2), (STAYS, 0, 1), (STAYS, 1, 2)):
        mixed = advection(torch.zeros(1, 2, 16, 12), sources, torch.full((1,), held))
        shown = codec.decode_future(mixed, 2, frames=[3, 7])[0, latent]
        expected = frames[0].roll((share * 2 + 1, share * 3 + 2), (1, 2)) if held == GOES else frames[1]
        inner = (slice(None), slice(6, None), slice(9, None))
        assert torch.allclose(shown[inner], expected[inner], atol=1e-4)


def a_model(*, patch: int = 1, channels: int = 24) -> DiffusionWorldModel:
    torch.manual_seed(0)
    architecture = ArchitectureSettings(
        codec="components",
        latent_channels=channels,
        advection=True,
        heads=2,
        head_dim=12,
        layers=2,
        ffn_dim=32,
        freq_dim=16,
        patch=patch,
    )
    cfg = WorldModelSettings(
        architecture=architecture, pretrained="none", rollout_dtype="float32", num_inference_steps=1
    )
    codec = ComponentAutoencoder(channels=channels)
    codec.fit(pictures(40))
    return DiffusionWorldModel(cfg, codec, action_dim=3)


def mixing(model: DiffusionWorldModel) -> Advection:
    assert model.mixer is not None and model.mixer.advection is not None
    return model.mixer.advection


def a_window() -> Window:
    g = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (4, 13, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
    actions, pose = torch.rand(4, 13, 3, generator=g), torch.rand(4, 13, 2, generator=g)
    labels = {"held": torch.tensor([STAYS, GOES, UNKNOWN, GOES]), "shut_at": pose[:, 2]}
    return Window(frames, actions, pose, labels)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_dream_goes_on_from_what_it_put_together(precision, generator):
    model, window = a_model(), a_window()
    model.trained.to(precision)
    starts = [
        InitState(
            reference=window.frames[i, 0],
            memory=window.frames[i, 1:5],
            actions=window.actions[i, 1:5],
            pose=window.pose[i, :5],
            instruction="",
            episode=i,
            step=4,
            rule="initial",
            steps_left=16,
        )
        for i in range(4)
    ]
    state = model.begin(starts)
    for _ in range(2):
        state = model.imagine(state, torch.rand(4, 8, 3), generator=generator)
    assert state.memory.dtype == torch.float32
    assert model.look(state, [3, 7]).shape == (4, 2, 3, SIDE, SIDE)


@pytest.mark.parametrize("patch", [1, 2])
def test_untrained_the_memory_stays_and_in_a_dream_that_holds_something_even_more_so(patch):
    model, window = a_model(patch=patch), a_window()
    latents = model.encode(window)
    conditions = model._conditions(window.actions, window.pose)
    advection = mixing(model)
    clean = latents[:, :, 0], latents[:, :, 1], conditions, window.pose[:, 0], model.autoencoder
    real = model.autoencoder.decode_future(latents[:, :, :2], 1, frames=[3])[:, 0]
    off = []
    for sharpness in (1.0, SHARPER):
        tokens = torch.rand(4, 2, (SIDE // 8 // patch) ** 2, 24)
        future = advection(tokens, Sources.of(*clean, sharpness=sharpness), torch.tensor([STAYS, STAYS, GOES, GOES]))
        shown = model.autoencoder.decode_future(future, 1, frames=[3])[:, 0]
        off.append((shown - real).square().mean((1, 2, 3)).unflatten(0, (2, 2)).mean(1))
    unlike = (to_unit(window.frames[:, 0]) - real).square().mean()
    assert off[1][GOES] < 0.2 * off[0][GOES] < 0.02 * unlike
    assert torch.equal(off[1][STAYS], off[0][STAYS])


def test_every_weight_of_it_learns(generator):
    model = a_model()
    for parameter in model.trained.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.loss(a_window(), generator=generator).backward()
    weights = model.trained.named_parameters()
    silent = {name for name, p in weights if p.grad is None or not p.grad.any()}
    before = {name for name, _ in model.trained.named_parameters() if "body" in name or "grasp." in name}
    assert before
    assert silent == before  # learnt


def test_a_moving_picture_is_learnt_from_the_hand_alone(generator):
    """Everything moves with the hand, by another way in every window: only what looks at the hand can tell."""
    model = a_model()
    advection = mixing(model)
    before = advection.decide.bias.detach().clone()
    optimiser = torch.optim.Adam(advection.parameters(), lr=0.05)
    frames = to_unit(a_window().frames[:, MEMORY])
    for _ in range(12):
        right, down = torch.randint(-4, 5, (2,), generator=generator).tolist()
        pose = hand(right=right, down=down).expand(4, -1, -1)
        film = [frames] * (MEMORY + 1)
        film += [frames.roll((s * down, s * right), (2, 3)) for s in (1, 2) for _ in range(4)]
        latents = model.autoencoder.encode(torch.stack(film, 1))
        labels = {"held": torch.full((4,), UNKNOWN), "shut_at": pose[:, 0]}
        window = Window(a_window().frames, torch.rand(4, 13, 3), pose, labels)
        loss, _ = model.learn(latents, window, draws=Draws(generator, 4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    rose = (advection.decide.bias - before).detach()
    assert rose[MOVED_MEMORY] > 0.2 > -0.2 > rose[REMEMBERED]


def test_without_labels_there_is_no_learning(generator):
    with pytest.raises(AssertionError, match="labelled with the outcome of grasps"):
        a_model().loss(replace(a_window(), labels={}), generator=generator)


def test_what_is_told_to_go_along_goes_and_what_is_told_to_stay_stays(generator):
    """Nothing before it says whether the picture goes with the hand or stays; what it is told does."""
    model = a_model(channels=192)  # which lose nothing
    advection = mixing(model)
    advection.body.out.bias.data[3] = -10.0  # no arm hides anything
    optimiser = torch.optim.Adam(model.trained.parameters(), lr=0.002)
    frames, pose = to_unit(a_window().frames[:, MEMORY]), hand(right=3, down=0).expand(4, -1, -1)
    actions = torch.rand(4, 13, 3, generator=generator)

    def film(goes: torch.Tensor) -> torch.Tensor:
        after = [torch.where(goes[:, None, None, None], frames.roll(3 * s, 3), frames) for s in (1, 2)]
        return model.autoencoder.encode(torch.stack([frames] * (MEMORY + 1) + [after[0]] * 4 + [after[1]] * 4, 1))

    for _ in range(150):
        goes = torch.arange(4) % 2
        window = Window(a_window().frames, actions, pose, {"held": goes, "shut_at": pose[:, 0]})
        loss, _ = model.learn(film(goes == GOES), window, draws=Draws(generator, 4))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.trained.parameters(), 1.0)
        optimiser.step()
    real = [film(torch.full((4,), goes)) for goes in (False, True)]
    clean = real[0][:, :, 0], real[0][:, :, 1]
    conditions = model._conditions(actions, pose)
    with torch.no_grad():
        sources = Sources.of(*clean, conditions, model.statistics.in_picture(pose[:, 0]), model.autoencoder)
        noise = torch.randn(real[0][:, :, 2:].shape, generator=generator)
        for outcome in (STAYS, GOES):
            mix = partial(advection, sources=sources, held=torch.full((4,), outcome))
            context = model.transformer.context(*clean, conditions, memory_noise=torch.zeros(4), mix=mix)
            shown = noise - model.transformer(noise, torch.ones(4), context)
            off = [(shown - one[:, :, 2:]).square().mean() for one in real]
            assert off[outcome] < 0.7 * off[1 - outcome]


def test_a_background_is_what_is_mostly_seen():
    frames = torch.full((9, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    for i in range(9):
        frames[i, :, 3 * i : 3 * i + 3] = 250  # a thing, elsewhere every time
    advection = Advection(12, patch=1, pose_dim=2)
    advection.fit_background(frames)
    assert torch.allclose(advection.background, to_unit(frames[:1, :, -1:, -1:]).expand(-1, -1, 128, 128)[0])


def grasping(*, episodes: int = 8) -> tuple[EpisodeBatch, torch.Tensor]:
    """Hands that shut after four steps and then go right, and what they shut around, which goes along every other time.

    Half of them shut above a thing, half beside it. Also their poses in the picture.
    """
    x = torch.cat([torch.full((8,), 6), 6 + torch.arange(1, 17).clamp(max=14)])
    frames = torch.full((episodes, 24, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    actions = torch.zeros(episodes, 23, 3)
    actions[:, 3:, 2] = 1.0
    actions[:, :3, 2] = -1.0
    for episode in range(episodes):
        above = episode % 2 == GOES
        for step in range(24):
            left = int(x[step]) if above else 9
            frames[episode, step, :, 15:19, left - 1 : left + 2] = 255
    pose = torch.stack([x / SIDE, torch.full((24,), 0.5)], -1).expand(episodes, -1, -1)
    return EpisodeBatch(frames, actions, pose), pose


def test_a_hand_that_shut_around_a_thing_is_foreseen_to_take_it_along(generator):
    """Learnt from the pictures alone, in which things go with a hand that shut above them, and with no other."""
    torch.manual_seed(0)
    advection = Advection(12, patch=1, pose_dim=2)
    advection.body.out.bias.data[3] = -10.0  # no arm hides anything
    episodes, pose = grasping()
    held = advection.follow(episodes.frames, pose, gripper_commands(episodes.actions))
    assert held[:, 4:].tolist() == [[episode % 2] * 20 for episode in range(8)]
    assert held[:, :4].eq(STAYS).all()
    labelled, codec = replace(episodes, labels={"held": held}), ComponentAutoencoder(channels=24)
    losses = fit_grasp(advection, codec, labelled, pose, steps=60, generator=generator)
    assert sum(losses[-5:]) / 5 < 0.2 < 0.5 < losses[0]
    nothing = replace(episodes, labels={"held": torch.full_like(held, UNKNOWN)})
    assert fit_grasp(advection, codec, nothing, pose, steps=60, generator=generator) == []


def test_a_window_says_what_is_held_and_where_the_hand_shut():
    model = a_model()
    mixing(model).body.out.bias.data[3] = -10.0  # no arm hides anything
    episodes, _ = grasping()
    assert model.mixer is not None
    labelled = model.mixer.label(episodes, model.statistics)
    window = window_at(labelled, torch.tensor([1, 0, 1]), torch.tensor([12, 12, 2]))
    assert window.labels["held"].tolist() == [GOES, STAYS, STAYS]
    assert torch.equal(window.labels["shut_at"], episodes.pose[0, [4, 4, 2]])
    assert window_at(episodes, torch.tensor([1]), torch.tensor([12])).labels == {}


def test_a_dream_decides_once_a_grasp(generator):
    """And remembers what; another time that the hand shuts, it decides again."""
    model, window = a_model(), a_window()
    advection = mixing(model)
    odds = torch.tensor([[-30.0, 30.0]])  # it goes along
    advection.foresee = lambda sources: odds.expand(len(sources.pose), -1)
    starts = [
        InitState(
            reference=window.frames[0, 0],
            memory=window.frames[0, 1:5],
            actions=-torch.ones(4, 3),
            pose=window.pose[0, :5],
            instruction="",
            episode=0,
            step=4,
            rule="initial",
            steps_left=16,
        )
    ]
    state = model.begin(starts)
    shut = torch.tensor([0.005, 0.005, 1.0]).expand(1, 8, -1)
    opened = shut.clone()
    opened[:, 4:, 2] = -1.0
    told, places = [], []
    for actions, says in ((shut, 1), (shut, 1), (shut, 0), (opened, 0), (shut, 0), (shut, 0), (shut, 1)):
        odds = torch.tensor([[-30.0, 30.0]]) * (1 if says else -1)
        state = model.imagine(state, actions, generator=generator)
        told.append(int(state.extra["held"]))
        places.append(state.extra["shut_at"])
    assert told == [UNKNOWN, GOES, GOES, UNKNOWN, UNKNOWN, STAYS, STAYS]
    assert torch.equal(places[1], places[2])  # where it shut
    assert not torch.equal(places[2], places[5])
    assert torch.equal(places[5], places[6])
