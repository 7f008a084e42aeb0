"""Collected episodes and their keyframes, opened for training; what may not be trained on is refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wovr_core.artifacts import ArtifactError, Kind, Manifest, check_episodes_fit, load_table, read_manifest
from wovr_core.artifacts.episodes import UNNAMED, cameras_of, picture_store, read_episodes
from wovr_core.chunk import CHUNK
from wovr_core.envs.splits import SPLIT_SIZE, Split, split_of
from wovr_core.keyframes.mine import Keyframe
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Episode

FOR_TRAINING = (Split.DEMONSTRATION, Split.COLLECTION)


@dataclass(frozen=True)
class RealData:
    """Collected episodes, oldest collection first, apart by what they may be used for."""

    episodes: list[Episode]  # all of them, in order: what keyframes refer to
    training: list[Episode]
    held_out: list[Episode]  # never trained on
    sizes: list[int]  # training episodes of each collection
    digests: list[str]  # of the collections

    def need_held_out(self) -> None:
        """What is measured by dreams of held-out episodes needs some, before anything is dreamt."""
        if not self.held_out:
            raise ArtifactError(
                f"none of {len(self.episodes)} episodes is held out to measure on: collect some with collect.held_out"
            )

    def need_both(self) -> None:
        """Training without something to measure it on is refused before it starts."""
        if not self.training or not self.held_out:
            raise ArtifactError(
                f"of {len(self.episodes)} episodes {len(self.training)} are to train on and {len(self.held_out)} held "
                f"out to measure on, and both are needed; collect some with collect.episodes and collect.held_out"
            )

    @property
    def success_rate(self) -> float:
        return sum(episode.succeeded for episode in self.episodes) / len(self.episodes)


def open_episodes(paths: Sequence[Path], task: TaskSettings | None = None) -> RealData:
    """Collections of episodes, all of the task. Their frames are read when they are asked for, into one memory.

    One that is named twice counts once: a policy that was brought without demonstrations learns from its episodes only.
    """
    every: list[Episode] = []
    sizes, digests = [], []
    store = None
    for path in paths:
        digest = read_manifest(path, Kind.EPISODES).digest
        if digest in digests:
            continue
        digests.append(digest)
        store = store or picture_store(path)
        new = read_episodes(path, store)
        if not new:
            raise ArtifactError(f"{path} holds no episodes: collect some")
        if task is not None:
            check_episodes_fit(new, task, path)
            if (seen_by := cameras_of(path)) not in (task.cameras, UNNAMED):
                raise ArtifactError(
                    f"{path} was seen by {', '.join(seen_by)}, but the task by {', '.join(task.cameras)}: set "
                    f"task.cameras, or use episodes of these cameras"
                )
        for episode in new:
            if episode.init_state >= SPLIT_SIZE * len(Split):
                raise ArtifactError(f"{path} has the initial state {episode.init_state}, which no split holds")
        every += new
        sizes.append(sum(split_of(episode.init_state) in FOR_TRAINING for episode in new))
    splits = [split_of(episode.init_state) for episode in every]
    if Split.EVALUATION in splits:
        raise ArtifactError("episodes of the evaluation split must never be trained on; collect others")
    return RealData(
        every,
        [episode for episode, split in zip(every, splits, strict=True) if split in FOR_TRAINING],
        [episode for episode, split in zip(every, splits, strict=True) if split is Split.KEYFRAMES],
        sizes,
        digests,
    )


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Collections of episodes as the inputs an artifact names in its manifest."""
    return {f"episodes_{i}": path for i, path in enumerate(paths)}


def collections_of(manifest: Manifest) -> list[str]:
    """The digests of the collections of episodes that an artifact was made from, in order; see `named`."""
    roles = (f"episodes_{i}" for i in range(len(manifest.made_from)))
    return [manifest.made_from[role] for role in roles if role in manifest.made_from]


def load_keyframes(path: Path, data: RealData, task: TaskSettings) -> list[Keyframe]:
    """Keyframes of these very episodes, each with time for a dream after it."""
    manifest = read_manifest(path, Kind.KEYFRAMES)
    rows = load_table(path, "keyframes", Keyframe)
    if len({(row.episode, row.step) for row in rows}) < len(rows):
        raise ArtifactError(f"{path} has a keyframe twice, so dreams would begin there twice as often: mine them again")
    for i, row in enumerate(rows):
        if row.episode >= len(data.episodes) or row.step + CHUNK > task.horizon:
            raise ArtifactError(
                f"{path}: keyframe {i} is step {row.step} of episode {row.episode}, but there are "
                f"{len(data.episodes)} episodes of {task.horizon} steps, and a dream takes {CHUNK}: mine "
                f"keyframes from these episodes"
            )
    if collections_of(manifest) not in ([], data.digests):
        raise ArtifactError(f"the keyframes at {path} were mined from other episodes: give those, or mine them again")
    return rows
