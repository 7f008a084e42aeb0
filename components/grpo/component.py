from typing import Optional

from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import (
    EpisodesArtifact,
    KeyframesArtifact,
    PolicyArtifact,
    RewardModelArtifact,
    WorldModelArtifact,
)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def improve_policy(
    task: dict,
    grpo: dict,
    policy: Input[PolicyArtifact],
    world_model: Input[WorldModelArtifact],
    reward: Input[RewardModelArtifact],
    keyframes: Input[KeyframesArtifact],
    episodes: Input[EpisodesArtifact],
    improved: Output[PolicyArtifact],
    newest: Input[EpisodesArtifact] | None = None,
    pace: Optional[dict] = None,  # noqa: UP045 (kfp reads no dict | None)
    endpoint: str = "",
):
    """Reinforcement learning inside the world model: GRPO on imagined rollouts.

    Args:
        task: Settings branch.
        grpo: Settings branch.
        policy: Where learning begins.
        world_model: What dreams.
        reward: What sees success in dreams, and the hallucination detector.
        keyframes: Where some rollouts begin.
        episodes: The first collection; rollouts begin at the starts of its episodes.
        improved: With `history.jsonl` and snapshots; metadata: imagined success first and last.
        newest: The collection of a PACE round.
        pace: Settings branch of a PACE round, which has its own number of updates.
        endpoint: Where Triton serves world model and reward model, from `serve_dreams`; none to dream in process.
    """
    from pathlib import Path

    from components.platform.cluster import run_or_submit
    from components.platform.endpoint import improve_policy as step
    from components.platform.tracking import following
    from wovr_core import settings

    branches = {name: tree for name, tree in {"task": task, "grpo": grpo, "pace": pace}.items() if tree}
    cfg, shared = settings.GrpoSettings.model_validate(grpo), settings.TaskSettings.model_validate(task)
    ports = {name: Path(port.path) for name, port in {"policy": policy, "keyframes": keyframes}.items()}
    ports |= {"world_model": Path(world_model.path), "reward": Path(reward.path), "out": Path(improved.path)}
    ports |= {"episodes": [Path(part.path) for part in (episodes, newest) if part]}
    words = {"endpoint": endpoint} if endpoint else {}
    words |= {"updates": settings.PaceSettings.model_validate(pace).updates} if pace else {}

    def here():
        with following("grpo", branches) as tracker:
            return step(cfg, shared, **ports, **words, tracker=tracker)

    improved.metadata.update(run_or_submit("grpo", branches, here, words=words, **ports).summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def check_base_policy(task: dict, grpo: dict, episodes: Input[EpisodesArtifact]):
    """Refuse a base policy that has nothing to learn, before world model and reward are trained for it.

    Args:
        task: Settings branch.
        grpo: Settings branch.
        episodes: The first collection, of the base policy.
    """
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.grpo import check_base_policy as step

    cfg, shared = settings.GrpoSettings.model_validate(grpo), settings.TaskSettings.model_validate(task)
    print("\n".join(step(cfg, shared, episodes=Path(episodes.path))))
