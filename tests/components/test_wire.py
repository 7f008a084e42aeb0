"""What travels between a rollout and the served simulator, without Triton in between."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from components.platform.deployment import known_dream, known_starts
from components.platform.triton import ServedSimulator
from components.serving import memory
from components.serving.dreams import Server, code_that_dreams
from components.serving.wire import CALLS, INPUTS, OUTPUTS, TYPES, pack, unpack
from tests.steps.conftest import SHAPE, TASK, WORLD_MODEL
from tests.toys import RULE, SIDE
from wovr_core.artifacts import Kind, digest_at, writing
from wovr_core.protocols import DreamState
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.store.rewards import save_reward
from wovr_core.store.world_models import new_world_model, save_world_model
from wovr_core.world_model.flow import dream_noise
from wovr_core.world_model.model import DiffusionWorldModel


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"held": torch.tensor([1, 0, -1])},
        {"place": torch.rand(3, 2), "mask": torch.rand(3, 4, 4) > 0.5, "dim": torch.rand(3, 1).bfloat16()},
    ],
    ids=["nothing", "one", "several"],
)
def test_whatever_a_model_remembers_arrives_as_it_was(extra):
    packed = pack(extra, 3)
    assert packed.dtype == torch.uint8 and len(packed) == 3
    arrived = unpack(packed)
    assert arrived.keys() == extra.keys()
    for name, value in extra.items():
        assert arrived[name].dtype == value.dtype and torch.equal(arrived[name], value)
    rows = torch.tensor([2, 0])
    assert all(torch.equal(unpack(packed[rows])[name], value[rows]) for name, value in extra.items())


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A served version of a world model that remembers more than every model does: how many chunks it has dreamt."""
    begin, imagine = DiffusionWorldModel.begin_at, DiffusionWorldModel.imagine_with

    def begin_counting(model: DiffusionWorldModel, *now: torch.Tensor) -> DreamState:
        return replace(begin(model, *now), extra={"chunks": torch.zeros(len(now[0]))})

    def count_on(
        model: DiffusionWorldModel, noise: torch.Tensor, state: DreamState, actions: torch.Tensor
    ) -> DreamState:
        chunks = state.extra["chunks"]
        lit = replace(state, memory=state.memory + chunks.view(-1, 1, 1, 1))
        return replace(imagine(model, noise, lit, actions), extra={"chunks": chunks + 1})

    monkeypatch.setattr(DiffusionWorldModel, "begin_at", begin_counting)
    monkeypatch.setattr(DiffusionWorldModel, "imagine_with", count_on)
    torch.manual_seed(0)
    world = new_world_model(WORLD_MODEL, TASK)
    for parameter in world.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    with writing(tmp_path / "world_model", Kind.WORLD_MODEL, settings={}) as draft:
        save_world_model(draft.folder, world)
    with writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}) as draft:
        save_reward(draft.folder, SuccessClassifier(SHAPE, success_rule=RULE))
    parts = {name: tmp_path / name for name in ("world_model", "reward")}
    served = {name: digest_at(path) for name, path in parts.items()} | {"code": code_that_dreams()}
    version = tmp_path / "models" / "dreams-0" / "1"
    version.mkdir(parents=True)
    served["addresses"] = {name: str(path) for name, path in parts.items()}
    (version / "served.json").write_text(json.dumps(served))
    return Server(version)


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> ServedSimulator:
    """A client whose calls go to the server without a network; each port is checked as Triton would."""

    def ask(self: ServedSimulator, call: str, rows: int, request: dict) -> dict[str, np.ndarray]:
        for name, value in request.items():
            fits("input", name, value, INPUTS)
        answer = server.answer({"call": [call] * rows, **request})
        assert set(answer) == set(CALLS[call][1])
        for name, value in answer.items():
            fits("output", name, value, OUTPUTS)
        texts = {
            name: np.array([[text] for text in value]) for name, value in answer.items() if isinstance(value, list)
        }
        return {name: value.numpy() for name, value in answer.items() if name not in texts} | texts

    def fits(side: str, name: str, value: torch.Tensor | list[str], ports: dict) -> None:
        dtype, shape = ports[name]
        if isinstance(value, list):
            assert dtype == "object", f"{side} {name}"
            return
        assert str(value.numpy().dtype) == dtype and dtype in TYPES, f"{side} {name}"
        assert len(value.shape) == len(shape) + 1, f"{side} {name}"

    monkeypatch.setattr(ServedSimulator, "_ask", ask)
    return ServedSimulator("nowhere", "version", detector=False)


def test_a_model_that_remembers_more_dreams_the_same_behind_the_wire(server, client):
    here = server.simulator
    starts = known_starts(here.world_model.statistics, SIDE, 1, "put the red block on the green pad", n=3)
    ours, theirs = known_dream(here, starts), known_dream(client, starts)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    state = client.begin(starts)
    assert state.extra["chunks"].tolist() == [0, 0, 0]
    assert state_after(client, state, starts).extra["chunks"].tolist() == [1, 1, 1]
    assert torch.equal(client.look(state_after(client, state, starts)), client.look(state_after(here, state, starts)))


def test_what_was_not_asked_for_is_told(server):
    with pytest.raises(ValueError, match="the call imagine lacks read, instruction"):
        server.answer({"call": ["imagine"]})
    with pytest.raises(ValueError, match="no call 'encode': choose one of imagine, begin, decode, about"):
        server.answer({"call": ["encode"]})


@pytest.fixture
def room_for(monkeypatch) -> Callable[[float], None]:
    """Lets a process have so many bytes for its tensors."""
    return lambda size: monkeypatch.setattr(memory, "free_memory", lambda device: size / memory.SHARE)


def chunk(server: Server, dreams: int) -> dict:
    """A call of so many dreams that differ, with their noise."""
    model = server.simulator.world_model
    starts = known_starts(model.statistics, SIDE, 1, "put the red block on the green pad", n=dreams)
    state, g = model.begin(starts), torch.Generator().manual_seed(0)
    return {
        "call": ["imagine"] * dreams,
        "read": torch.tensor([[1, 7]] * dreams, dtype=torch.int32),
        "instruction": [start.instruction for start in starts],
        "first_frame": torch.stack([start.reference for start in starts]),
        "reference": state.reference,
        "memory": state.memory,
        "past_actions": state.actions,
        "pose": state.pose,
        "extra": pack(state.extra, dreams),
        "actions": 2 * torch.rand(dreams, 8, 3, generator=g) - 1,
        "noise": dream_noise(state.memory, model.noise_latents, generator=g),
    }


def test_dreams_that_do_not_fit_are_computed_in_batches_and_are_the_same_dreams(server, room_for):
    request = chunk(server, 11)
    whole = server.answer(request)
    ((any_number, each),) = server.room._takes.values()
    room_for(any_number + 4.5 * each)
    sizes, imagine = [], server.calls["imagine"]

    def watched(rows: dict) -> dict:
        sizes.append(len(rows["call"]))
        return imagine(rows)

    server.calls["imagine"] = watched
    split = server.answer(request)
    assert sizes == [4, 4, 3]
    parts = [imagine({name: rows[i : i + 4] for name, rows in request.items()}) for i in (0, 4, 8)]
    for name, rows in split.items():
        assert torch.equal(rows, torch.cat([part[name] for part in parts])), name
        # a product of other rows may be summed in another order: the last bits of float32, and of a colour the last
        assert torch.allclose(rows.float(), whole[name].float(), atol=1 if name == "seen" else 1e-5), name
    assert split["seen"].float().std() > 1 and len(split["seen"]) == 11


def test_instances_share_what_is_free_and_where_no_dream_fits_it_says_so(server, room_for):
    request = chunk(server, 8)
    server.answer(request)
    ((any_number, each),) = server.room._takes.values()
    room_for(2 * (any_number + 4.5 * each))
    server.room.instances = 2
    assert server.room.most(*server.room._takes, 8, None) == 4
    room_for(each / 2)
    with pytest.raises(ValueError, match=r"one dream takes .* MB, and .* \(50% of what is free on cpu, shared by 2\)"):
        server.answer(request)


def test_what_a_computation_takes_is_what_its_tensors_take_at_once():
    weights = torch.ones(1000, 1000)  # lies there before

    def compute() -> torch.Tensor:
        x = torch.ones(10, 1000) @ weights.t()  # 40 kB, and for a moment as much beside them
        for _ in range(3):
            x = x.view(100, 100).t() + 1  # a view takes nothing
        return x

    assert memory.peak_of(compute) == 2 * 4 * 10 * 1000


def state_after(simulator, state: DreamState, starts) -> DreamState:
    actions, generator = torch.ones(len(state), 8, 3), torch.Generator().manual_seed(0)
    return simulator.imagine(state, actions, starts=starts, frames=[7], generator=generator)[0]
