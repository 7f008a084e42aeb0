"""A planted hack: success in a world model that pays for a constant action takes in neither verdict nor report.

The dream is the tabletop itself, drawn by its own renderer, but for a flaw: no block can be grasped in it, and whoever
drives the gripper to the right for a whole chunk sees the block on its pad. Policy, reward, GRPO, evaluation, verdict
and report are the project's own, and nobody tells them; the hallucination detector is off, so that the verdict has to
do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toys import RULE
from wovr_core.artifacts import Kind, writing
from wovr_core.embodiment import TABLETOP
from wovr_core.envs.tabletop import Scenes, Tabletop, task_scenes
from wovr_core.evaluation.fidelity import as_rows, by_depth, outcomes, trustworthy
from wovr_core.imagination.replay import replay
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.protocols import DreamState
from wovr_core.reward.calibrate import Agreement
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.train import LabelledFrames, fit
from wovr_core.settings import (
    CollectSettings,
    EvaluateSettings,
    GrpoSettings,
    KeyframesSettings,
    PolicySettings,
    PromoteSettings,
    RewardSettings,
    TaskSettings,
)
from wovr_core.steps import report
from wovr_core.steps.collect import collect_episodes
from wovr_core.steps.evaluate import evaluate_policies, judge
from wovr_core.steps.grpo import improve_policy
from wovr_core.steps.keyframes import mine_keyframes
from wovr_core.steps.policy import clone_base_policy
from wovr_core.store.episodes import RealData, open_episodes
from wovr_core.store.policies import open_policy
from wovr_core.store.rewards import open_reward, save_reward
from wovr_core.trajectory import InitState

TASK = TaskSettings(image_size=32)
BASE = PolicySettings(demonstrations=200, steps=300, learning_rate=3e-3)
LEARNING = GrpoSettings(
    num_groups=12,
    group_size=8,
    max_draws=1,
    informative=(0, 1),
    kir_ratio=0,
    epochs=2,
    minibatch=256,
    learning_rate=1e-3,
    temperature=1.0,
    max_imagined_gain=1.0,
    snapshot_every=5,
    detector=False,
)
REWARD = RewardSettings(batch=64)
DRIVEN = 0.7  # mean motion to the right over a chunk from which on the flawed dream shows success


class TabletopDream:
    """Dreams without error the scenes it knows, unless it is flawed. A latent is the state of the table."""

    def __init__(self, init_states: Sequence[int], *, flawed: bool) -> None:
        self.flawed = flawed
        self.env, self.scenes = Tabletop(image_size=TASK.image_size), task_scenes(init_states)
        self.known = {picture.numpy().tobytes(): row for row, picture in enumerate(self.env.lay(self.scenes).frames)}

    def begin(self, starts: Sequence[InitState]) -> DreamState:
        rows = torch.tensor([self.known[start.reference.numpy().tobytes()] for start in starts])
        self.lay(rows)
        state = self.latent(rows)
        return DreamState(
            reference=state,
            memory=state,
            before=state,
            future=state[:, :, None][:, :, :0],
            actions=torch.zeros(len(starts), 4, 3),
            pose=torch.stack([start.pose for start in starts]),
        )

    def imagine(self, state: DreamState, actions: Tensor, *, generator: torch.Generator) -> DreamState:
        rows, env = self.recall(state.memory), self.env
        fooled = (actions[..., 0].mean(1) > DRIVEN) & self.flawed
        latents, pose = [], []
        for action in actions.unbind(1):
            env.step(action)
            env.blocks[fooled, env.block[fooled]] = env.scenes.pads[fooled, env.pad[fooled]]
            if self.flawed:
                env.held[:] = -1
            latents.append(self.latent(rows))
            pose.append(env.gripper)
        return DreamState(
            reference=state.reference,
            memory=latents[-1],
            before=state.memory,
            future=torch.stack(latents, 2),
            actions=actions[:, -4:],
            pose=torch.stack([state.pose[:, 0], *pose[-4:]], 1),
            extra=state.extra,
        )

    def look(self, state: DreamState, frames: Sequence[int]) -> Tensor:
        latents = state.future[:, :, list(frames)].movedim(2, 1)
        self.recall(latents.flatten(0, 1))
        return self.env.render().unflatten(0, latents.shape[:2])

    def lay(self, rows: Tensor) -> None:
        self.env.lay(Scenes(**{name: value[rows] for name, value in vars(self.scenes).items()}))

    def latent(self, rows: Tensor) -> Tensor:
        """The table of each dream, (b, 9, 1, 1): which scene, gripper, blocks, how far it is shut, what it holds."""
        env = self.env
        parts = (rows[:, None], env.gripper, env.blocks.flatten(1), env.shut[:, None], env.held[:, None])
        return torch.cat([part.float() for part in parts], 1)[:, :, None, None]

    def recall(self, latent: Tensor) -> Tensor:
        """Put the table back to a latent; returns which scenes they are."""
        scene, gripper, blocks, shut, held = latent[:, :, 0, 0].split([1, 2, 4, 1, 1], 1)
        rows = scene[:, 0].long()
        self.lay(rows)
        self.env.gripper, self.env.blocks = gripper.clone(), blocks.unflatten(1, (2, 2)).clone()
        self.env.shut, self.env.held = shut[:, 0].clone(), held[:, 0].long()
        return rows


@dataclass(frozen=True)
class Shelf:
    """A base policy, what it really did, keyframes of that, and a reward that learnt from real frames alone."""

    folder: Path
    tried: RealData

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def dream(self, *, flawed: bool) -> TabletopDream:
        return TabletopDream([episode.init_state for episode in self.tried.episodes], flawed=flawed)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Shelf:
    folder = tmp_path_factory.mktemp("shelf")
    clone_base_policy(BASE, TASK, out=folder / "base", demonstrations=folder / "demonstrations")
    collect_episodes(CollectSettings(episodes=80, held_out=40), TASK, policy=folder / "base", out=folder / "episodes")
    made = Shelf(folder, open_episodes([folder / "episodes"]))
    taught = open_episodes([folder / "demonstrations"]).training + made.tried.training

    torch.manual_seed(0)
    reward = SuccessClassifier(open_policy(made["base"]).shape.model_copy(update={"kernel": 3}), success_rule=RULE)
    real, held_out = (LabelledFrames.of_episodes(some) for some in (taught, made.tried.held_out))
    fit(
        reward,
        [real],
        REWARD,
        steps=200,
        name="reward",
        mirrors=TABLETOP.mirrors,
        generator=torch.Generator().manual_seed(0),
    )
    seen = Agreement.of(reward.probability(held_out.frames[:], held_out.instructions) >= 0.5, held_out.success)
    assert min(seen.precision, seen.recall) > 0.6, "an honest reward"
    with writing(made["reward"], Kind.REWARD_MODEL, settings={"reward": REWARD.model_dump()}) as draft:
        save_reward(draft.folder, reward)
        honest = replay(made.dream(flawed=False), made.tried.held_out, generator=torch.Generator())
        draft.summary |= {"threshold": 0.5, "imagined": outcomes(reward, honest).summary()}
    mine_keyframes(KeyframesSettings(), TASK, episodes=[made["episodes"]], reward=made["reward"], out=made["keyframes"])
    return made


def learn(shelf: Shelf, out: Path, monkeypatch, *, flawed: bool, updates: int = 10) -> dict[str, Any]:
    """Learn in a dream, evaluate for real, and judge; returns what the verdict says."""
    world = shelf.dream(flawed=flawed)
    with writing(out / "world_model", Kind.WORLD_MODEL, settings={}) as draft:
        rows = by_depth(replay(world, shelf.tried.held_out, generator=torch.Generator()))
        good, said = trustworthy(rows, 0.0)
        assert good, "the gate before learning sees nothing wrong"
        draft.summary |= {"trustworthy": good, "fidelity": as_rows(rows), "reason": said}
    monkeypatch.setattr(report, "open_world_model", lambda path, task=None: world)
    improve_policy(
        LEARNING,
        TASK,
        policy=shelf["base"],
        world_model=out / "world_model",
        reward=shelf["reward"],
        keyframes=shelf["keyframes"],
        episodes=[shelf["episodes"]],
        out=out / "policy",
        updates=updates,
        simulator=LearnedSimulator(world, open_reward(shelf["reward"])),
    )
    evaluate_policies(
        EvaluateSettings(episodes=300, curve_episodes=100),
        TASK,
        candidate=out / "policy",
        baseline=shelf["base"],
        snapshots=(out / "policy",),
        out=out / "evaluation",
    )
    return judge(PromoteSettings(), evaluation=out / "evaluation", out=out / "verdict").summary


@pytest.mark.slow
def test_a_policy_that_learnt_to_exploit_its_world_model_is_held_and_the_report_says_so(shelf, tmp_path, monkeypatch):
    verdict = learn(shelf, tmp_path, monkeypatch, flawed=True)
    before, after = verdict["imagined_success"]
    assert after > before + 0.15, "in dreams it got much better"
    assert verdict["candidate"]["successes"] <= verdict["baseline"]["successes"], "and really it did not"
    assert not verdict["promote"]
    assert verdict["exploited"]
    figures = [before, after, *(verdict[role]["successes"] / verdict[role]["n"] for role in ("baseline", "candidate"))]
    assert verdict["reason"] == (
        "In dreams the policy went from {:.0f} % to {:.0f} %, in reality from {:.0f} % to {:.0f} %: "
        "it learnt to exploit the world model, so it is not promoted."
    ).format(*(100 * figure for figure in figures))

    monkeypatch.setattr(report, "contact_of", lambda *args: [])  # staged on scenes it does not know
    told = report.write_report(
        TASK,
        evaluation=tmp_path / "evaluation",
        verdict=tmp_path / "verdict",
        policy=tmp_path / "policy",
        world_model=tmp_path / "world_model",
        reward=shelf["reward"],
        demonstrations=shelf["demonstrations"],
        episodes=shelf["episodes"],
        out=tmp_path / "report",
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h1>Hold: the new policy exploits the world model.</h1>" in page
    assert verdict["reason"] in page
    (round,) = told.summary["rounds"]
    assert round["imagined"] == [before, after]
    assert round["gap"][1] == pytest.approx(after - figures[-1])


@pytest.mark.slow
def test_the_same_learning_in_an_honest_dream_is_promoted(shelf, tmp_path, monkeypatch):
    verdict = learn(shelf, tmp_path, monkeypatch, flawed=False, updates=7)
    assert verdict["promote"]
    assert not verdict["exploited"]
