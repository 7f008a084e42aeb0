"""Does a GPU compute what the CPU computes? Every model of ours, with the same weights and the same chance.

    python benchmarks/gpu/job_1_devices.py --out devices.jsonl

Learnt from it: whether a tensor lies on the wrong device; how far dreams on the two differ, and so which
`serve.tolerance` a GPU server needs; whether torch 2.11 will do. Expected: 1 minute.
"""

from copy import deepcopy

import torch
from sections import Job, begin

from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import policy_decides, run_trials
from wovr_core.grpo.sampling import StartPool, sample_groups
from wovr_core.grpo.update import update_policy
from wovr_core.imagination.replay import init_state
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.tiny_vla import Shape, TinyVLA, vocabulary_of
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.settings import GrpoSettings, TaskSettings, WorldModelSettings
from wovr_core.store.environments import open_environment
from wovr_core.store.world_models import new_world_model
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import Episode, Observation
from wovr_core.world_model.windows import EpisodeBatch

TASK = TaskSettings()
GREEDY_RULE = SuccessRule(threshold=0.5, stride=2, hysteresis=2)


def material(count: int, steps: int) -> tuple[TinyVLA, list[Episode]]:
    """An untrained policy, and real episodes of it."""
    torch.manual_seed(0)
    with open_environment(TASK) as env:
        ids = Split.DEMONSTRATION.ids(count)
        vocabulary, words = vocabulary_of(env.reset(ids, Split.DEMONSTRATION).instructions)
        policy = TinyVLA(Shape(vocabulary=vocabulary, words=words, image_size=TASK.image_size))
        decide = policy_decides(policy, temperature=1.0, generator=torch.Generator().manual_seed(0))
        return policy, run_trials(env, decide, ids, Split.DEMONSTRATION, steps=steps).episodes


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, as a share of the range."""
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    span = (one.max() - one.min()).item() or 1.0
    return (one - other).abs().max().item() / span


def world_model(job: Job, episodes: list[Episode], dtype: str) -> None:
    """The shipped backbone: dreams of real actions, and a step of training."""
    chunks = len(episodes[0].actions) // 8
    starts = [init_state(e, 0, index=i, steps_left=8 * chunks, rule="initial") for i, e in enumerate(episodes)]
    actions = torch.stack([e.actions for e in episodes]).unflatten(1, (chunks, 8))
    here = new_world_model(WorldModelSettings(rollout_dtype=dtype, train_dtype=dtype), TASK)
    there = deepcopy(here).to(job.device)
    seen, latents = [], []
    with job.section(f"dreams in {dtype}") as facts:
        for model in (here, there):
            state, generator = model.begin(starts), torch.Generator().manual_seed(1)
            for chunk in range(chunks):
                state = model.imagine(state, actions[:, chunk], generator=generator)
            latents.append(state.future)
            seen.append(model.look(state))
        pixels = (seen[0].int() - seen[1].cpu().int()).abs()
        facts |= {"chunks": chunks, "apart": apart(*latents), "pixels_apart": pixels.max().item()}
        facts["share_above_1"] = (pixels > 1).float().mean().item()
    with job.section(f"a step of training in {dtype}") as facts:
        losses, gradients = [], []
        for model in (here.requires_grad_(True), there.requires_grad_(True)):
            lesson = model.lessons(
                EpisodeBatch.of(episodes), steps=1, parts=[slice(None)], generator=torch.Generator().manual_seed(2)
            )
            loss = lesson(0)
            loss.backward()
            losses.append(loss.item())
            gradients.append(
                torch.cat([p.grad.flatten().cpu() for p in model.trained.parameters() if p.grad is not None])
            )
        facts |= {"loss": losses, "gradient_apart": ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()}


def policy_and_reward(job: Job, policy: TinyVLA, episodes: list[Episode]) -> None:
    """What decides and what judges."""
    seen = Observation(
        frames=torch.stack([e.frames[0] for e in episodes]),
        instructions=tuple(e.instruction for e in episodes),
        pose=torch.stack([e.pose[0] for e in episodes]),
    )
    there = deepcopy(policy).to(job.device)
    with job.section("policy") as facts:
        one, other = (p.act(seen, temperature=1.0, generator=torch.Generator().manual_seed(3)) for p in (policy, there))
        facts["choices_alike"] = (one.choices == other.choices).float().mean().item()
        facts["apart"] = apart(one.log_prob, there.log_prob(seen, one.choices, temperature=1.0))
    reward, detector = SuccessClassifier(policy.shape, success_rule=GREEDY_RULE), FrameErrorClassifier(threshold=0.5)
    with job.section("reward model and detector") as facts:
        moved = deepcopy(reward).to(job.device), deepcopy(detector).to(job.device)
        facts["reward_apart"] = apart(*(m.probability(seen.frames, seen.instructions) for m in (reward, moved[0])))
        facts["detector_apart"] = apart(*(m.score(seen.frames, seen.frames.flip(0)) for m in (detector, moved[1])))


def learning(job: Job, policy: TinyVLA, episodes: list[Episode]) -> None:
    """GRPO once, from dreams to the policy's new weights."""
    groups = 4 if job.rehearsal else 32
    cfg = GrpoSettings(num_groups=groups, informative=(0.0, 1.0), detector=False, kir_ratio=0, epochs=1)
    steps = len(episodes[0].actions)
    pool = StartPool([init_state(e, 0, index=i, steps_left=steps, rule="initial") for i, e in enumerate(episodes)], [])
    torch.manual_seed(4)
    reward = SuccessClassifier(policy.shape, success_rule=GREEDY_RULE)
    last = torch.stack([e.frames[-1] for e in episodes])
    middle = reward.probability(last, [e.instruction for e in episodes]).median().item()  # so that half succeed
    reward.success_rule = SuccessRule(threshold=middle, stride=2, hysteresis=1)
    weights = []
    with job.section("a GRPO update") as facts:
        for device in (torch.device("cpu"), job.device):
            actor, dreams = deepcopy(policy).to(device), new_world_model(WorldModelSettings(), TASK).to(device)
            simulator = LearnedSimulator(dreams.requires_grad_(False), deepcopy(reward).to(device))
            generator = torch.Generator().manual_seed(5)
            batch = sample_groups(actor, simulator, pool, cfg, generator=generator)
            optimiser = torch.optim.Adam(actor.parameters(), lr=cfg.learning_rate)
            update_policy(actor, optimiser, batch.rollouts, batch.advantages, cfg, generator=generator)
            weights.append(torch.cat([p.detach().flatten().cpu() for p in actor.parameters()]))
        at_first = torch.cat([p.detach().flatten() for p in policy.parameters()])
        facts["moved"] = (weights[0] - at_first).norm().item()
        facts["apart"] = (weights[0] - weights[1]).norm().item()


def main() -> None:
    job = begin("devices", __doc__)
    count, steps = (8, 16) if job.rehearsal else (64, 64)
    policy, episodes = material(count, steps)
    for dtype in ("float32", "bfloat16"):
        world_model(job, episodes, dtype)
    policy_and_reward(job, policy, episodes)
    learning(job, policy, episodes)
    raise SystemExit(1 if job.failed else 0)


if __name__ == "__main__":
    main()
