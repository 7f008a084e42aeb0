"""How far may dreams be from RLinf's arithmetic before success is judged otherwise?

    python -m benchmarks.parity runs/tabletop [--steps 400] [--episodes 256]

RLinf's weights attend to everything and remember frames, decoded and encoded again: `benchmarks/rlinf_loop.py`. Ours
remember latents, and attend to a cached context where the weights were trained so. Here a world model of each kind
(the run's own, whose context is cached; and the same backbone trained `--steps` further with full attention) dreams
the actions of the run's held-out episodes in four arithmetics, from the same noise where that can be. Of each: how many
pixels differ from those of its own kind, how many dreams are judged alike, and how many as reality ended. How many
dreams of other noise are judged alike says how much of that is chance.
"""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from benchmarks.rlinf_loop import as_pixels, attending, first_queue, rlinf_chunk
from benchmarks.serving import Parts
from pipelines.runner.record import Run
from wovr_core.artifacts.manifest import code_version
from wovr_core.chunk import CHUNK
from wovr_core.imagination.replay import init_state
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.settings import TaskSettings, WorldModelSettings
from wovr_core.steps.world_model import train_world_model
from wovr_core.store.episodes import open_episodes
from wovr_core.store.world_models import architecture_of, open_simulator
from wovr_core.trajectory import Episode
from wovr_core.world_model.model import DiffusionWorldModel

HOW = {"cached context": {"full": False}, "full attention": {"full": True}, "as RLinf": {"full": True, "again": True}}


@torch.no_grad()
def dreams(
    model: DiffusionWorldModel, episodes: Sequence[Episode], *, full: bool, again: bool = False, seed: int = 0
) -> UInt8[Tensor, "episode frame 3 h w"]:
    """Every frame of dreams of these episodes' actions; `again`: what is remembered is decoded and encoded again."""
    starts = [init_state(e, 0, index=0, steps_left=CHUNK, rule="replay") for e in episodes]
    actions = torch.stack([e.actions for e in episodes])
    state, queue, frames = model.begin(starts), first_queue(model, starts), []
    with attending(model, everywhere=full):
        for chunk in actions.split(CHUNK, 1):
            if again:
                state, queue, new = rlinf_chunk(model, state, queue, chunk)
                frames.append(as_pixels(new))
            else:  # the noise of seed 0 for every chunk, as there
                state = model.imagine(state, chunk, generator=torch.Generator().manual_seed(seed))
                frames.append(model.look(state))
    return torch.cat(frames, 1)


def succeeds(
    simulator: LearnedSimulator, pictures: UInt8[Tensor, "episode frame 3 h w"], episodes: Sequence[Episode]
) -> Bool[Tensor, " episode"]:
    judged = simulator.success_rule.judged(pictures)
    words = [e.instruction for e in episodes for _ in range(judged.shape[1])]
    return simulator.success_rule.succeeds(
        simulator.reward.probability(judged.flatten(0, 1), words).view(len(episodes), -1)
    )


def compare(name: str, own: str, simulator: LearnedSimulator, episodes: Sequence[Episode]) -> None:
    """A line for each arithmetic, beside `own`: the one that the weights were trained for."""
    model = simulator.world_model
    assert isinstance(model, DiffusionWorldModel)
    real = torch.tensor([e.succeeded for e in episodes])
    made = {how: dreams(model, episodes, **HOW[how]) for how in HOW}
    made[f"{own}, other noise"] = dreams(model, episodes, **HOW[own], seed=1)
    mine = succeeds(simulator, made[own], episodes)
    for how, pictures in made.items():
        off = (pictures.float() - made[own].float()).abs().mean() / 255
        judged = succeeds(simulator, pictures, episodes)
        alike, right = ((judged == other).float().mean().item() for other in (mine, real))
        print(f"| {name} | {how} | {100 * off:.2f} | {100 * alike:.1f} | {100 * right:.1f} | {int(judged.sum())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run of the tabletop")
    parser.add_argument("--steps", type=int, default=400, help="of training with full attention")
    parser.add_argument("--episodes", type=int, default=256)
    args = parser.parse_args()
    parts, task = Parts.of(Run.read(args.run)), TaskSettings()
    data = open_episodes([parts.episodes])
    episodes = data.held_out[: args.episodes]
    cached = WorldModelSettings()
    full = architecture_of(cached).model_copy(update={"context_sees_future": True})
    with TemporaryDirectory() as folder:
        trained = Path(folder) / "full"
        cfg = WorldModelSettings(architecture=full.model_dump(), steps=args.steps)
        train_world_model(cfg, task, episodes=[parts.episodes], out=trained)
        both = {"cached context": parts.world_model, "full attention": trained}
        print("| trained with | dreams with | off by, % | judged alike, % | judged truly, % | successes |")
        print("|---|---|---|---|---|---|")
        for own, model in both.items():
            compare(own, own, open_simulator(model, parts.reward), episodes)
    real = sum(e.succeeded for e in episodes)
    print(f"\n{len(episodes)} held-out episodes, {real} really succeeded. {date.today()}, {code_version()}.")


if __name__ == "__main__":
    main()
