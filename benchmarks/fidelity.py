"""How far can the dream be trusted? Every figure of the world model's acceptance, for one world model and reward.

    python benchmarks/fidelity.py --policy P --world-model W --reward R

Pictures by depth, against holding the last frame and against shuffled actions; imagined against real outcomes of
held-out action sequences; contact outcomes by approach offset; the policy's own success in the dream against its real
success; and false successes: what the policy did in dreams that succeeded, done again for real. Prints the tables and
writes them with command, seed and date, and a drawing of what they say about contact beside them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wovr_core.chunk import CHUNK
from wovr_core.envs.splits import Split
from wovr_core.envs.tabletop import Tabletop
from wovr_core.evaluation.contact import Contact, contact_curve
from wovr_core.evaluation.fidelity import by_depth, outcomes
from wovr_core.evaluation.success import policy_decides, run_trials, success_rate
from wovr_core.imagination.replay import init_state, replay
from wovr_core.imagination.rollout import Rollouts, dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.action_chunks import from_tokens
from wovr_core.report.charts import Axis, Chart, alone, text
from wovr_core.store.policies import open_policy
from wovr_core.store.rewards import open_detector, open_reward
from wovr_core.store.world_models import open_world_model

FRESH = 500_000  # first of the collection-free initial states used here


def really(dreams: Rollouts, ids: list[int]) -> Bool[Tensor, " rollout"]:
    """Whether what was done in each dream, as long as it was dreamt, reaches the goal from the real initial state."""
    env = Tabletop()
    env.reset(ids, Split.KEYFRAMES)
    actions, dreamt = from_tokens(dreams.choices).flatten(1, 2), dreams.valid.any(-1).repeat_interleave(CHUNK, 1)
    won = [env.step(action) & going for action, going in zip(actions.unbind(1), dreamt.unbind(1), strict=True)]
    return torch.stack(won, 1).any(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, help="base or evolved")
    parser.add_argument("--world-model", type=Path, required=True)
    parser.add_argument("--reward", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=400, help="fresh real episodes, never trained on")
    parser.add_argument("--tries", type=int, default=48, help="grasps at each offset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/fidelity.json"))
    args = parser.parse_args()
    policy, reward = open_policy(args.policy), open_reward(args.reward)
    world_model = open_world_model(args.world_model)
    generator = torch.Generator().manual_seed(args.seed)
    ids = Split.KEYFRAMES.ids(args.episodes, start=FRESH)
    decide = policy_decides(policy, temperature=1.0, generator=generator)
    episodes, won, _ = run_trials(Tabletop(), decide, ids, Split.KEYFRAMES, steps=48)
    actions = torch.stack([episode.actions for episode in episodes])
    replayed = replay(world_model, episodes, generator=generator)
    shuffled = replay(world_model, episodes, generator=generator, actions=actions.roll(1, 0))
    depths = by_depth(replayed, shuffled)
    agreement, destroyed = outcomes(reward, replayed), outcomes(reward, shuffled)
    starts = [init_state(e, 0, index=i, steps_left=48, rule="initial") for i, e in enumerate(episodes)]
    facts_by_detector = {}
    for name, detector in (("without detector", None), ("with detector", open_detector(args.reward))):
        dreams = dream(
            policy, LearnedSimulator(world_model, reward, detector), starts, temperature=1.0, generator=generator
        )
        false = int((dreams.success & ~really(dreams, ids)).sum())
        facts_by_detector[name] = {
            "imagined": vars(success_rate(int(dreams.success.sum()), len(dreams))),
            "false_successes": vars(success_rate(false, len(dreams))),
            "hallucinated": int(dreams.hallucinated.sum()),
        }
    real = success_rate(int(won.sum()), len(won))
    curve = contact_curve(world_model, tries=args.tries, seed=args.seed)

    console = Console()
    table = Table(
        "depth", "PSNR dB", "copy last frame", "shuffled actions", title=f"held-out replays, n = {len(episodes)}"
    )
    for row in depths:
        table.add_row(str(row.depth), *(f"{v:.1f}" for v in (row.psnr, row.copy_last_frame, row.shuffled_actions)))
    console.print(table)
    console.print(f"outcome agreement: precision {agreement.precision:.2f} recall {agreement.recall:.2f} {agreement}")
    console.print(f"with shuffled actions: precision {destroyed.precision:.2f} recall {destroyed.recall:.2f}")
    console.print(f"the policy itself, real {real}; imagined from the same initial states:")
    for name, facts_of in facts_by_detector.items():
        console.print(f"  {name}: {facts_of}")
    table = Table(
        "offset, pixels", "grasped really", "in the dream", "agreement", title=f"contact, n = {args.tries} each"
    )
    for point in curve:
        table.add_row(f"{point.pixels:.1f}", *(f"{v:.2f}" for v in (point.real, point.imagined, point.agreement)))
    console.print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "command": f"benchmarks/fidelity.py --episodes {args.episodes} --tries {args.tries} --seed {args.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "seed": args.seed,
        "n": len(episodes),
        "depth": [vars(d) for d in depths],
        "outcomes": agreement.summary(),
        "outcomes_shuffled_actions": destroyed.summary(),
        "on_policy": {"real": vars(real), **facts_by_detector},
        "contact": [vars(point) for point in curve],
    }
    args.out.write_text(json.dumps(facts, indent=2) + "\n")
    args.out.with_suffix(".svg").write_text(figure(curve, facts_by_detector))


def figure(curve: Sequence[Contact], facts_by_detector: dict[str, Any]) -> str:
    """Grasps by offset, really and in the dream; and in words how many of the policy's dreams succeed wrongly."""
    x = Axis.around([0, max(row.pixels for row in curve)], "pixels beside the block when the gripper closes")
    chart = Chart(x, Axis.share("closings that grasp the block"), "Grasps by offset, real and imagined", 300)
    real, imagined = ([(row.pixels, getattr(row, kind)) for row in curve] for kind in ("real", "imagined"))
    chart.line(real, "real", dots=4)
    chart.line(imagined, "imagined", dots=4)
    chart.say(1, 0.88, "● really", anchor="start")
    chart.say(1, 0.78, "■ in the dream", anchor="start")
    lines = ["Of the policy's own", "dreams succeed, and", "would not for real:"]
    for name, facts in facts_by_detector.items():
        rate = facts["false_successes"]
        lines.append(f"{100 * rate['successes'] / rate['n']:.1f} % {name}")
        lines.append(f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}], n = {rate['n']}")
    chart.marks += [text(words, 62, 124 + 18 * row, cls="name") for row, words in enumerate(lines)]
    return alone(chart.svg())


if __name__ == "__main__":
    main()
