"""What travels between a rollout and the served simulator, without Triton in between."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from components.platform.deployment import known_dream, known_starts
from components.platform.triton import ServedSimulator
from components.serving.dreams import Server, code_that_dreams
from components.serving.wire import CALLS, INPUTS, OUTPUTS, TYPES, pack, unpack
from tests.steps.conftest import SHAPE, TASK, WORLD_MODEL
from tests.toys import RULE, SIDE
from wovr_core.artifacts import Kind, digest_at, writing
from wovr_core.protocols import DreamState
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.store.rewards import save_reward
from wovr_core.store.world_models import new_world_model, save_world_model
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


def state_after(simulator, state: DreamState, starts) -> DreamState:
    actions, generator = torch.ones(len(state), 8, 3), torch.Generator().manual_seed(0)
    return simulator.imagine(state, actions, starts=starts, frames=[7], generator=generator)[0]
