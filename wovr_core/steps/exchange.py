"""Episodes from elsewhere, and to elsewhere: LIBERO's and robomimic's HDF5, RLinf's .npy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wovr_core.artifacts import ArtifactError, Kind, Manifest, read_episodes, read_manifest, write_episodes, writing
from wovr_core.artifacts.hdf5 import read_hdf5, write_hdf5
from wovr_core.artifacts.npy import read_npy
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import success_rate
from wovr_core.trajectory import Episode

FIRST = 900_000  # initial state of the split's from which imported episodes are numbered: no run begins there


def import_episodes(
    sources: Sequence[Path],
    *,
    out: Path,
    steps: int,
    split: Split,
    image_size: int | None = None,
    instruction: str | None = None,
    success: bool | None = None,
    fps: int = 20,
) -> Manifest:
    """An Episodes artifact of .hdf5 and .npy files, or of folders of them, in the order of their names.

    Whatever is stacked must be equally long: an episode ends after `steps` actions, a shorter one stands still until
    then. Raises `ArtifactError` for a file that is not understood, before anything is written.
    """
    if split is Split.EVALUATION:
        raise ArtifactError("nothing is ever learnt from evaluation states: choose another split")
    episodes = []
    for file in files_in(sources):
        if file.suffix == ".npy":
            episodes.append(read_npy(file, success=success))
        else:
            episodes += read_hdf5(file, instruction=instruction)
    numbered = [
        replace(at_size(lasting(episode, steps), image_size), init_state=state)
        for episode, state in zip(episodes, split.ids(len(episodes), start=FIRST), strict=True)
    ]
    settings = {"steps": steps, "image_size": image_size, "files": [file.name for file in files_in(sources)]}
    with writing(out, Kind.EPISODES, settings=settings) as draft:
        write_episodes(draft.folder, numbered, source="imported", policy_digest="unknown", fps=fps)
        rate = success_rate(sum(episode.succeeded for episode in numbered), len(numbered))
        draft.summary |= {
            "episodes": len(numbered), "successes": rate.successes, "success_rate": rate.value,
            "interval": [rate.low, rate.high], "cut": sum(len(episode.actions) > steps for episode in episodes),
        }  # fmt: skip
    return draft.manifest


def export_episodes(episodes: Path, *, out: Path) -> list[Path]:
    """One HDF5 file for each instruction, named after it, in a folder."""
    read_manifest(episodes, Kind.EPISODES)
    told = read_episodes(episodes)
    if told[0].pose.shape[1] != 6:
        raise ArtifactError(
            f"{episodes} has poses of {told[0].pose.shape[1]} numbers, but HDF5 keeps six: where a hand is, how turned"
        )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for words in sorted({episode.instruction for episode in told}):
        path = out / f"{words.lower().replace(' ', '_')}_demo.hdf5"
        write_hdf5(path, [episode for episode in told if episode.instruction == words])
        written.append(path)
    return written


def files_in(sources: Sequence[Path]) -> list[Path]:
    found = [
        file
        for source in sources
        for file in (sorted(source.iterdir()) if source.is_dir() else [source])
        if file.suffix in (".hdf5", ".h5", ".npy")
    ]
    if not found:
        raise ArtifactError(f"there is no .hdf5 or .npy file in {', '.join(map(str, sources))}")
    return found


def lasting(episode: Episode, steps: int) -> Episode:
    """The episode with so many actions: cut, or standing still at its end as the gripper was last told."""
    taken = episode.actions[:steps]
    missing = steps - len(taken)
    rest = torch.zeros(missing, taken.shape[1])
    if len(taken):
        rest[:, -1] = taken[-1, -1]

    def longer(values: Tensor) -> Tensor:
        kept = values[: len(taken) + 1]
        return torch.cat([kept, kept[-1:].expand(missing, *kept.shape[1:])])

    return replace(
        episode, actions=torch.cat([taken, rest]), frames=longer(episode.frames), pose=longer(episode.pose),
        success=longer(episode.success),
    )  # fmt: skip


def at_size(episode: Episode, size: int | None) -> Episode:
    """The episode in square pictures of that many pixels."""
    if size is None or episode.frames.shape[-2:] == (size, size):
        return episode
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((size, size)) for frame in episode.frames]
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return replace(episode, frames=frames.permute(0, 3, 1, 2).contiguous())
