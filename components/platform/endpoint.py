"""Where a policy dreams: on a Triton server if $WOVR_TRITON_URL names one, in its own process otherwise.

Apart from `triton.py`, so that who dreams in process need not wait for imports of what is not used.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from wovr_core.artifacts import Manifest
from wovr_core.protocols import Simulator, Tracker
from wovr_core.settings import GrpoSettings, ServeSettings, TaskSettings

URL, REPOSITORY = "WOVR_TRITON_URL", "WOVR_TRITON_REPOSITORY"  # host:port of gRPC; the folder Triton loads models from


def serve_dreams(cfg: ServeSettings, *, world_model: Path, reward: Path) -> str:
    """Put the two into service and say as which version; nothing where there is no Triton."""
    if not (url := os.environ.get(URL)):
        return ""
    from components.platform.deployment import deploy
    from components.platform.triton import ServingError

    if not (repository := os.environ.get(REPOSITORY)):
        raise ServingError(
            f"${URL} names a Triton server, but ${REPOSITORY} does not say which folder it loads models from"
        )
    return deploy(cfg, url=url, repository=Path(repository), world_model=world_model, reward=reward)


def improve_policy(
    cfg: GrpoSettings,
    task: TaskSettings,
    *,
    policy: Path,
    world_model: Path,
    reward: Path,
    keyframes: Path,
    episodes: Sequence[Path],
    out: Path,
    updates: int | None = None,
    endpoint: str = "",
    tracker: Tracker | None = None,
) -> Manifest:
    """GRPO in dreams of this process, or in those that Triton serves at an `endpoint`.

    Every process of a group asks Triton for its own dreams.
    """
    from wovr_core.steps.grpo import improve_policy as step

    dreams = {"world_model": world_model, "reward": reward}
    return step(
        cfg,
        task,
        policy=policy,
        keyframes=keyframes,
        episodes=episodes,
        out=out,
        updates=updates,
        simulator=simulator_at(endpoint, **dreams, detector=cfg.detector),
        tracker=tracker,
        **dreams,
    )


def simulator_at(endpoint: str, *, world_model: Path, reward: Path, detector: bool) -> Simulator | None:
    """What `serve_dreams` put into service, if it was made from these two; None for the process's own."""
    if not endpoint:
        return None
    from components.platform.deployment import digests
    from components.platform.triton import ServedSimulator, ServingError

    if not (url := os.environ.get(URL)):
        raise ServingError(f"this policy is to dream at {endpoint}, but ${URL} does not say on which Triton server")
    simulator = ServedSimulator(url, endpoint, detector=detector)
    if not digests(world_model, reward).items() <= simulator.about.items():
        raise ServingError(f"{endpoint} at {simulator.url} serves other artifacts than these: run the step serve again")
    return simulator
