"""Before a policy learns in dreams: to act there as it would act in reality.

A dream's picture is not quite a camera's. A policy that never saw one does something else there than where it was
cloned (docs/decisions/021-a-policy-that-has-seen-dreams.md), and what is then learnt is not about the task.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wovr_core.imagination.replay import init_state
from wovr_core.imagination.rollout import CHUNK
from wovr_core.protocols import Policy, Simulator
from wovr_core.training.augmentation import jitter
from wovr_core.training.loop import counting, train
from wovr_core.trajectory import Episode, Observation, to_pixels, to_unit

BATCH = 48
STARTS = (0, 40, 80)  # steps of an episode at which it is replayed from


@dataclass(frozen=True)
class Pairs:
    """The same moments, as the camera saw them and as a dream shows them."""

    instructions: tuple[str, ...]
    frames: UInt8[Tensor, "n 2 c h w"]  # real, dreamt
    pose: Float[Tensor, "n 2 p"]

    def __len__(self) -> int:
        return len(self.instructions)

    def seen(self, rows: Tensor, which: int, shift: torch.Generator) -> Observation:
        frames = to_pixels(jitter(to_unit(self.frames[rows, which]), generator=shift))
        return Observation(
            frames=frames, instructions=tuple(self.instructions[row] for row in rows.tolist()),
            pose=self.pose[rows, which],
        )  # fmt: skip


@torch.no_grad()
def pairs(simulator: Simulator, episodes: Sequence[Episode], *, generator: torch.Generator, batch: int = 64) -> Pairs:
    """The episodes' own actions, dreamt from a few of their moments on; of the start and every chunk the last frame."""
    said: list[str] = []
    frames, pose = [], []
    with counting("dreams of what was", len(STARTS) * len(episodes)) as watch:
        for begin in STARTS:
            for i in range(0, len(episodes), batch):
                some = episodes[i : i + batch]
                left = len(some[0].actions) - begin
                starts = [init_state(e, begin, index=0, steps_left=left, rule="replay") for e in some]
                state, done = simulator.begin(starts), torch.stack([e.actions for e in some])
                shown = torch.stack([start.memory[-1] for start in starts])
                for at in range(begin, begin + left // CHUNK * CHUNK + 1, CHUNK):
                    frames.append(torch.stack([torch.stack([e.frames[at] for e in some]), shown], 1))
                    pose.append(torch.stack([torch.stack([e.pose[at] for e in some]), state.pose[:, -1]], 1))
                    said += [e.instruction for e in some]
                    told = done[:, at : at + CHUNK]
                    if told.shape[1] == CHUNK:
                        state, sight = simulator.imagine(
                            state, told, starts=starts, read=[CHUNK - 1], generator=generator
                        )
                        shown = sight.frames[:, -1]
                watch(len(some))
    return Pairs(tuple(said), torch.cat(frames), torch.cat(pose))


def acclimatise(
    policy: Policy,
    seen: Pairs,
    *,
    steps: int,
    learning_rate: float,
    temperature: float,
    generator: torch.Generator,
) -> list[float]:
    """Learn to do, seeing a dream, what the policy as it was would do seeing the real thing; and there as before.

    Returns the losses: the mean negative log-likelihood of a choice, over both.
    """
    assert isinstance(policy, nn.Module)
    teacher = deepcopy(policy)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(seen), (BATCH,), generator=generator)
        shift = int(torch.randint(2**62, (), generator=generator))
        real, dreamt = (seen.seen(rows, which, torch.Generator().manual_seed(shift)) for which in (0, 1))
        tokens = teacher.act(real, temperature=temperature, generator=generator).tokens
        return -torch.stack([policy.log_prob(one, tokens, temperature=temperature) for one in (dreamt, real)]).mean()

    return train(policy, loss, name="acclimatise", steps=steps, learning_rate=learning_rate, generator=generator)
