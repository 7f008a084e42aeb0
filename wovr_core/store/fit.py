"""Do the artifacts that a run begins with fit the settings and each other? Asked before anything is spent.

Each part says facts of itself; a rule names two facts that must agree wherever one part says the one and another part
the other. What is checked is the manifest, every file's digest and what files say of themselves; no model is opened.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from operator import eq, ge, le
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wovr_core.artifacts import ArtifactError, Kind, Manifest, load_json, read_manifest
from wovr_core.artifacts.episodes import UNNAMED, cameras_of
from wovr_core.artifacts.lerobot import INFO
from wovr_core.artifacts.manifest import Facts
from wovr_core.chunk import CHUNK
from wovr_core.policy.openvla.checkpoint import OpenVlaShape, open_base
from wovr_core.policy.tiny_vla import Shape
from wovr_core.reward.resnet import ResNetShape
from wovr_core.settings import Settings, TaskSettings, WorldModelSettings
from wovr_core.store import policies, rewards
from wovr_core.store.episodes import open_episodes
from wovr_core.store.facts import Calibration, RewardFacts, WorldModelFacts

OF_A_COLLECTION = ("acted_by", "held_out", "wins", "success", "outcomes")
OUTCOMES = ("failure", "success")
KINDS = {
    "policy": Kind.POLICY,
    "demonstrations": Kind.EPISODES,
    "episodes": Kind.EPISODES,
    "world_model": Kind.WORLD_MODEL,
    "reward": Kind.REWARD_MODEL,
}


@dataclass(frozen=True)
class Rule:
    """Two facts that must agree, and the sentence that is said where they do not."""

    has: str
    wants: str
    sentence: str  # with {part}, {other}, and what they say, {has} and {wants}
    agree: Callable[[Any, Any], bool] = eq


def of_the_task(name: str, noun: str) -> Rule:
    return Rule(
        name,
        f"task.{name}",
        f"{{part}} has {noun} {{has}}, but the task has {{wants}}: set task.{name}, or bring another",
    )


BRING = "bring another, or leave it out"
WON = "{part} has {has} successes to clone on from, and needs {wants}: bring some, or set grpo.cotrain_steps to 0"
RULES = (
    Rule(
        "environment",
        "task.environment",
        "{part} is of the environment {has}, but task.environment is {wants}: set that, or bring another",
    ),
    of_the_task("cameras", "the cameras"),
    of_the_task("image_size", "pictures of the size"),
    of_the_task("horizon", "episodes of the length"),
    Rule("views", "task.views", f"{{part}} sees {{has}} cameras, but task.cameras names {{wants}}: {BRING}"),
    Rule(
        "action_dim", "task.action_dim", f"{{part}} has actions of {{has}} numbers, not the task's {{wants}}: {BRING}"
    ),
    Rule("pose_dim", "task.pose_dim", f"{{part}} has poses of {{has}} numbers, not the task's {{wants}}: {BRING}"),
    Rule(
        "fps", "task.fps", "{part} runs at {has} steps a second, but the task at {wants}: import it with --fps {wants}"
    ),
    Rule("chunk", "task.chunk", f"{{part}} decides {{has}} actions at once, but a chunk has {{wants}}: {BRING}"),
    Rule(
        "picture_stride",
        "task.picture_stride",
        "{part} has a picture every {has} steps, but task.picture_stride is {wants}: set that to {has}",
        le,
    ),
    Rule("learns", "grpo.learns", f"{{part}} is a script, which does not learn: {BRING}", ge),
    Rule("cloned", "grpo.cotrains", "{part} is not cloned here: set grpo.cotrain_steps to 0", ge),
    Rule("wins", "grpo.wins", WON, ge),
    Rule("demonstrated", "grpo.demonstrated", WON, ge),
    Rule("says", "knows", "{part} asks for {has}, words that {other} does not know: bring one that learnt them", le),
    Rule(
        "acted_by",
        "policy_digest",
        "{part} was collected by the policy {has:.12}, but {other} is {wants:.12}, which would be judged by what "
        "another did: leave inputs.episodes out, or bring it as inputs.demonstrations",
        lambda actor, policy: actor in policy,
    ),
    Rule("training", "needs", "{part} has {has} episodes to learn from, and needs {wants}: bring more", ge),
    Rule(
        "held_out",
        "needs",
        "{part} has {has} episodes that are held out, and dreams are measured on these: import it with --held-out, or "
        "leave it out",
        ge,
    ),
    Rule(
        "success",
        "grpo.base_success",
        "{part} succeeded at a rate of {has:.2f}, outside of grpo.base_success {wants}, so there is nothing to learn "
        "from: bring another policy, or widen that",
        lambda rate, bounds: bounds[0] <= rate <= bounds[1],
    ),
    Rule(
        "outcomes",
        "reward.outcomes",
        "{part} has outcomes of one kind only among its training episodes, {has}, and the reward learns from {wants}: "
        "bring other episodes, or a reward too",
    ),
    Rule("distrust", "world_model.trusted", "{part} is not trusted: {has}", lambda reason, _: not reason),
    Rule("uncalibrated", "reward.trusted", "{part} is not trusted: {has}", lambda reason, _: not reason),
    Rule("detector", "grpo.detector", "{part} has no hallucination detector: set grpo.detector to false", ge),
    Rule(
        "calibrated_on",
        "world_model_digest",
        "{part} was calibrated in dreams of {has:.12}, but {other} is {wants:.12}: calibrate it with `wovr step reward "
        "CONFIG --previous`, or leave inputs.reward out",
    ),
    Rule(
        "dreams_every",
        "judges_every",
        "{part} dreams a frame every {has} steps, but {other} judges one every {wants}: set reward.stride to {has}, "
        "and calibrate the reward with it",
        lambda dreams, judges: judges % dreams == 0,
    ),
    Rule(
        "dreams_every",
        "task.picture_stride",
        "{part} dreams a frame every {has} steps, but task.picture_stride is {wants}: set that to {has} or less",
        lambda dreams, pictures: dreams % pictures == 0,
    ),
)


def check_inputs(asked: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
    """Raise `ArtifactError` unless these artifacts, by role, are whole and fit; with every reason, one a line.

    `asked` is what settings ask of them: `facts_of_settings`, or `facts_of_task` where no more is known.
    """
    parts: dict[str, Mapping[str, Any]] = {"the settings": asked}
    wrong = []
    for role, path in folders.items():
        try:
            parts[f"inputs.{role} ({path})"] = facts_of(role, path)
        except ArtifactError as error:
            wrong.append(f"inputs.{role}: {error}")
    if wrong := [*wrong, *complaints(parts)]:
        raise ArtifactError("\n".join(wrong))


def complaints(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for every two parts that disagree."""
    for rule in RULES:
        for (part, one), (other, another) in permutations(parts.items(), 2):
            if rule.has not in one or rule.wants not in another:
                continue
            has, wants = one[rule.has], another[rule.wants]
            if not rule.agree(has, wants):
                if isinstance(has, frozenset) and isinstance(wants, frozenset):
                    has -= wants
                yield rule.sentence.format(part=part, other=other, has=_plain(has), wants=_plain(wants))


def _plain(value: Any) -> Any:
    """A fact as a sentence has it."""
    if isinstance(value, frozenset):
        return ", ".join(sorted(map(str, value)))
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def facts_of_settings(settings: Settings) -> dict[str, Any]:
    """What all settings of a run ask of what it begins with."""
    facts = facts_of_task(settings.task) | {
        "grpo.cotrains": settings.grpo.cotrain_steps > 0,
        "grpo.base_success": settings.grpo.base_success,
        "world_model.trusted": True,
    }
    inputs = settings.inputs
    if inputs.policy and settings.grpo.cotrain_steps:
        facts["grpo.demonstrated" if inputs.demonstrations else "grpo.wins"] = 1
    if inputs.reward and inputs.world_model:  # used as it is
        return facts | {"grpo.detector": settings.grpo.detector, "reward.trusted": True}
    return facts | {"judges_every": settings.reward.stride, "reward.outcomes": OUTCOMES}


def facts_of_task(task: TaskSettings) -> dict[str, Any]:
    """What a task asks of every artifact."""
    body = task.embodiment
    return {
        "task.environment": task.environment,
        "task.cameras": task.cameras,
        "task.views": len(task.cameras),
        "task.image_size": task.image_size,
        "task.horizon": task.horizon,
        "task.picture_stride": task.picture_stride,
        "task.action_dim": body.action_dim,
        "task.pose_dim": body.pose_dim,
        "task.fps": body.fps,
        "task.chunk": CHUNK,
        "grpo.learns": True,
        "needs": 1,
    }


def facts_of(role: str, path: Path) -> dict[str, Any]:
    """What the artifact in this role says of itself. Raises `ArtifactError` where it is damaged or of another kind."""
    manifest = read_manifest(path, KINDS[role])
    says = {Kind.POLICY: _policy, Kind.EPISODES: _episodes, Kind.WORLD_MODEL: _world_model, Kind.REWARD_MODEL: _reward}[
        manifest.kind
    ](path, manifest)
    if role == "demonstrations":  # whoever acted there, and however it went
        says |= {"demonstrated": says["wins"]}
        says = {name: fact for name, fact in says.items() if name not in OF_A_COLLECTION}
    if "task" in manifest.settings:
        task = manifest.branch("task", TaskSettings, path)
        says |= {"environment": task.environment, "cameras": task.cameras}
    return says


def _policy(path: Path, manifest: Manifest) -> dict[str, Any]:
    kind = policies.kind_of(path)
    shape: Any = load_json(path, "policy", policies.KINDS[kind].shape)
    facts = {
        "policy_digest": (manifest.digest, *_same_weights(manifest)),
        "learns": policies.KINDS[kind].learns,
        "cloned": policies.KINDS[kind].cloned,
        "views": shape.cameras,
        **{name: getattr(shape, name) for name in ("action_dim", "image_size", "chunk")},
    }
    if isinstance(shape, OpenVlaShape):  # its base lies elsewhere: is it there, with the statistics of its actions?
        open_base(Path(shape.checkpoint), shape.unnorm_key)
    if isinstance(shape, Shape):
        facts["knows"] = frozenset(shape.vocabulary)
    return facts | ({"pose_dim": shape.pose_dim} if shape.pose_dim else {})


def _same_weights(manifest: Manifest) -> tuple[str, ...]:
    """The digest of the policy that PACE chose, where it wrote this one: another artifact, and it acts alike."""
    if "rolled_back" not in manifest.summary:
        return ()
    return (manifest.made_from["previous" if manifest.summary["rolled_back"] else "evolved"],)


class _Info(Facts):
    """Of meta/info.json, what no episode says."""

    fps: int


def _episodes(path: Path, manifest: Manifest) -> dict[str, Any]:
    data, cameras = open_episodes([path]), cameras_of(path)
    first, count = data.episodes[0], len(cameras)
    lengths = {len(episode.actions) for episode in data.episodes}
    facts = {
        "action_dim": first.actions.shape[1],
        "pose_dim": first.pose.shape[1],
        "image_size": first.frames.shape[-2],
        "views": count,
        "horizon": lengths.pop() if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}",
        "picture_stride": first.picture_stride,
        "fps": load_json(path, INFO.removesuffix(".json"), _Info).fps,
        "says": frozenset(word for episode in data.episodes for word in episode.instruction.lower().split()),
        "training": len(data.training),
        "held_out": len(data.held_out),
        "wins": sum(episode.succeeded for episode in data.training),
        "success": data.success_rate,
        "outcomes": tuple(OUTCOMES[won] for won in sorted({episode.succeeded for episode in data.training})),
    }
    if cameras != UNNAMED:
        facts["cameras"] = cameras
    return facts | ({"acted_by": manifest.made_from["policy"]} if "policy" in manifest.made_from else {})


def _world_model(path: Path, manifest: Manifest) -> dict[str, Any]:
    cfg, file = load_json(path, "world_model", WorldModelSettings), path / "world_model.safetensors"
    try:
        with safe_open(file, "pt") as weights:
            sizes = {name: weights.get_slice(f"statistics.{name}").get_shape()[0] for name in ("q01", "reach")}
    except (SafetensorError, OSError, IndexError) as error:
        raise ArtifactError(f"{file} holds no statistics of actions ({error}): make it again") from error
    facts = {"world_model_digest": manifest.digest, "action_dim": sizes["q01"], "pose_dim": sizes["reach"]}
    if cfg.architecture is not None:
        facts["dreams_every"] = cfg.architecture.stride
    if "task" in manifest.settings:
        facts["image_size"] = manifest.branch("task", TaskSettings, path).image_size
    gate = manifest.summarised(WorldModelFacts, path)
    return facts | {"distrust": "" if gate.trustworthy else gate.reason}


def _reward(path: Path, manifest: Manifest) -> dict[str, Any]:
    calibration = load_json(path, "calibration", Calibration)
    gate = manifest.summarised(RewardFacts, path)
    facts: dict[str, Any] = {
        "judges_every": calibration.stride,
        "uncalibrated": "" if gate.trustworthy else gate.reason,
        "calibrated_on": manifest.made_from.get("world_model", "nothing"),
        "detector": (path / "detector.safetensors").exists(),
    }
    if rewards.kind_of(manifest, path) == rewards.RESNET:
        tasks = load_json(path, "reward", ResNetShape).tasks
        facts["views"] = 1
        return facts | ({"knows": frozenset(word for task in tasks for word in task.lower().split())} if tasks else {})
    shape = load_json(path, "reward", Shape)
    return facts | {"image_size": shape.image_size, "views": shape.cameras, "knows": frozenset(shape.vocabulary)}
