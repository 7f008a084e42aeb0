from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import Episodes, Keyframes, Policy, RewardModel, WorldModel


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def collect_again(task: dict, collect: dict, pace: dict, round: int, policy: Input[Policy], episodes: Output[Episodes]):
    """Look at what the evolved policy really does, on initial states that no other round has seen."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.collect import collect_episodes as step

    cfg = settings.Pace.model_validate(pace)
    manifest = step(
        settings.Collect.model_validate({**collect, "episodes": cfg.episodes, "held_out": cfg.held_out}),
        settings.Task.model_validate(task),
        policy=Path(policy.path),
        out=Path(episodes.path),
        round=round,
    )
    episodes.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def choose_policy(
    task: dict,
    pace: dict,
    evolved: Input[Policy],
    evolved_episodes: Input[Episodes],
    previous: Input[Policy],
    previous_episodes: Input[Episodes],
    chosen: Output[Policy],
) -> bool:
    """The evolved policy, unless it has really become worse: then the one before. Says whether to go on learning."""
    from pathlib import Path

    from wovr_core import settings
    from wovr_core.steps.pace import choose_policy as step

    manifest = step(
        settings.Pace.model_validate(pace),
        settings.Task.model_validate(task),
        evolved=Path(evolved.path),
        evolved_episodes=Path(evolved_episodes.path),
        previous=Path(previous.path),
        previous_episodes=Path(previous_episodes.path),
        out=Path(chosen.path),
    )
    chosen.metadata.update(manifest.summary)
    return not manifest.summary["settled"]


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def refit_world_model(
    task: dict,
    pace: dict,
    world_model: Input[WorldModel],
    demonstrations: Input[Episodes],
    episodes: Input[Episodes],
    newest: Input[Episodes],
    refitted: Output[WorldModel],
):
    """Continue the world model on old episodes and on what the evolved policy does."""
    from pathlib import Path

    from components.platform.cluster import run_or_submit
    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.pace import refit_world_model as step

    told = {"task": task, "pace": pace}
    cfg, shared = settings.Pace.model_validate(pace), settings.Task.model_validate(task)
    ports = {
        "world_model": Path(world_model.path),
        "episodes": [Path(some.path) for some in (demonstrations, episodes, newest)],
        "out": Path(refitted.path),
    }

    def here():
        with following("world_model refit", told) as tracker:
            return step(cfg, shared, **ports, tracker=tracker)

    manifest = run_or_submit("pace", told, here, **ports)
    refitted.metadata.update(manifest.summary)


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def improve_again(
    task: dict,
    grpo: dict,
    pace: dict,
    policy: Input[Policy],
    world_model: Input[WorldModel],
    reward: Input[RewardModel],
    keyframes: Input[Keyframes],
    episodes: Input[Episodes],
    newest: Input[Episodes],
    improved: Output[Policy],
    endpoint: str = "",
):
    """GRPO once more, in the refitted world model and for as many updates as a PACE round has."""
    from pathlib import Path

    from components.platform.endpoint import simulator_at
    from components.platform.tracking import following
    from wovr_core import settings
    from wovr_core.steps.grpo import improve_policy as step

    cfg = settings.Grpo.model_validate(grpo)
    dreams = {"world_model": Path(world_model.path), "reward": Path(reward.path)}
    with following("grpo", {"task": task, "grpo": grpo, "pace": pace}) as tracker:
        manifest = step(
            cfg,
            settings.Task.model_validate(task),
            policy=Path(policy.path),
            keyframes=Path(keyframes.path),
            episodes=[Path(episodes.path), Path(newest.path)],
            out=Path(improved.path),
            updates=settings.Pace.model_validate(pace).updates,
            simulator=simulator_at(endpoint, **dreams, monitor=cfg.monitor),
            tracker=tracker,
            **dreams,
        )
    improved.metadata.update(manifest.summary)
