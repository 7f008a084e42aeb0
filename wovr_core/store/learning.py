"""In which dreams a policy learnt: what a report tells of the artifacts behind it, kept with the policy itself."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import NonNegativeInt

from wovr_core.artifacts import ArtifactError, Facts, Kind, load_json, load_lines, read_manifest, save_json
from wovr_core.artifacts.manifest import checked
from wovr_core.grpo.history import UpdateRecord
from wovr_core.keyframes.mine import Keyframe
from wovr_core.report.clips import thumbnail
from wovr_core.report.story import Thumbnail
from wovr_core.settings import GrpoSettings
from wovr_core.store.facts import CollectedFacts, KeyframesFacts, RewardFacts, WorldModelFacts
from wovr_core.trajectory import Episode

T = TypeVar("T")
THUMBNAILS = 6  # of each rule, at most
FILES = ("learning.json", "history.jsonl")


class Learning(Facts):
    """learning.json: a learning in dreams. A fact is None where its artifact came from elsewhere, without a summary."""

    collected: CollectedFacts | None  # real episodes of the policy that the learning began with
    held_out: NonNegativeInt  # of them, never trained on
    world_model: WorldModelFacts | None
    reward: RewardFacts | None
    keyframes: KeyframesFacts | None
    thumbnails: tuple[Thumbnail, ...]
    stopped: str  # why it ended early; empty where it did not
    imagined_frames: NonNegativeInt
    settings: dict[str, dict[str, Any]]  # branches that the artifacts were made with; the policy's own come first
    made_from: dict[str, str]  # digests, by role

    @property
    def grpo(self) -> GrpoSettings:
        return checked(GrpoSettings, json.dumps(self.settings.get("grpo", {})), "the settings `grpo` of a learning")

    def must_have(self, fact: str, policy: Path) -> Any:
        """One of the facts; raises `ArtifactError` where there is none."""
        value = getattr(self, fact)
        if value is None:
            raise ArtifactError(
                f"{policy} learnt with {fact.replace('_', ' ')} of which no summary was written: make that with its "
                f"step of wovr, and the policy again"
            )
        return value


def save_learning(
    folder: Path,
    *,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str],
    world_model: Path,
    reward: Path,
    keyframes: Path,
    episodes: Path,
    chosen: Sequence[Keyframe],
    real: Sequence[Episode],
    held_out: int,
    stopped: str,
    imagined_frames: int,
) -> None:
    """Write down what a policy learnt in. `episodes`: the newest collection, of which `held_out` are never trained on.

    The `chosen` keyframes refer to the `real` episodes.
    """
    manifests = {
        path: read_manifest(path, kind)
        for path, kind in (
            (world_model, Kind.WORLD_MODEL),
            (reward, Kind.REWARD_MODEL),
            (keyframes, Kind.KEYFRAMES),
            (episodes, Kind.EPISODES),
        )
    }

    def facts(kind: type[T], path: Path) -> T | None:
        return manifests[path].summarised(kind, path) if manifests[path].summary else None

    learning = Learning(
        collected=facts(CollectedFacts, episodes),
        held_out=held_out,
        world_model=facts(WorldModelFacts, world_model),
        reward=facts(RewardFacts, reward),
        keyframes=facts(KeyframesFacts, keyframes),
        thumbnails=tuple(thumbnails_of(chosen, real)),
        stopped=stopped,
        imagined_frames=imagined_frames,
        settings=branches(settings, *(manifest.settings for manifest in manifests.values())),
        made_from=dict(made_from),
    )
    save_json(folder, "learning", learning.model_dump(mode="json", exclude_unset=True))


def copy_learning(policy: Path, folder: Path) -> None:
    """A policy that goes on as it was keeps what it learnt in, and how. One that learnt in no dream has none."""
    for name in FILES:
        if (policy / name).exists():
            shutil.copy(policy / name, folder)


def load_learning(policy: Path) -> tuple[Learning, list[UpdateRecord]]:
    """In which dreams a policy learnt, and its updates; there are none where a gate refused these dreams."""
    read_manifest(policy, Kind.POLICY)
    if not all((policy / name).exists() for name in FILES):
        raise ArtifactError(f"{policy} has learnt in no dream: give a policy that grpo wrote")
    records = load_lines(policy, "history", UpdateRecord)
    learning = load_json(policy, "learning", Learning)
    if not records and not learning.stopped:
        raise ArtifactError(f"{policy} has learnt nothing, its history is empty: give a policy that grpo wrote")
    return learning, records


def branches(*settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Branches of the settings tree that artifacts were made with; of one branch the first counts."""
    merged: dict[str, Any] = {}
    for tree in settings:
        merged = dict(tree) | merged
    return {name: value for name, value in merged.items() if isinstance(value, dict)}


def thumbnails_of(keyframes: Sequence[Keyframe], real: Sequence[Episode]) -> list[Thumbnail]:
    """A few keyframes of each rule, spread evenly over the episodes it chose from."""
    by_rule: dict[str, dict[int, int]] = defaultdict(dict)  # step by episode
    for row in keyframes:
        by_rule[row.rule].setdefault(row.episode, row.step)
    return [
        Thumbnail(
            rule=rule, instruction=real[episode].instruction, step=step, picture=thumbnail(real[episode].frames[step])
        )
        for rule, steps in by_rule.items()
        for episode, step in list(steps.items())[:: -(-len(steps) // THUMBNAILS)]
    ]
