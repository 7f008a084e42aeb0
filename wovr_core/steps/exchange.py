"""Episodes from elsewhere, and to elsewhere: LIBERO's and robomimic's HDF5, RLinf's .npy."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from wovr_core.artifacts import ArtifactError, Kind, Manifest, read_episodes, read_manifest, write_episodes, writing
from wovr_core.artifacts.conventions import Conventions, Imported
from wovr_core.artifacts.episodes import cameras_of
from wovr_core.artifacts.hdf5 import CAMERAS, read_hdf5, write_hdf5
from wovr_core.artifacts.manifest import refuse_place
from wovr_core.artifacts.names import file_name
from wovr_core.artifacts.npy import read_npy
from wovr_core.envs.splits import Split
from wovr_core.evaluation.success import success_rate
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Episode

FIRST = 900_000  # initial state of the split's from which imported episodes are numbered: no run begins there
MAX_FPS = 1000
AS_FILES_SAY = Conventions()
FORMATS = (".hdf5", ".h5", ".npy")


def import_episodes(
    sources: Sequence[Path],
    *,
    out: Path,
    steps: int,
    split: Split,
    held_out: int = 0,
    image_size: int | None = None,
    conventions: Conventions = AS_FILES_SAY,
    fps: int = 20,
) -> Manifest:
    """An Episodes artifact of .hdf5 and .npy files, or of folders of them, in the order of their names.

    Whatever is stacked must be equally long: an episode ends after `steps` actions, a shorter one stands still until
    then. So many as are `held_out`, evenly among them, are never trained on, whatever the split of the others. The
    summary says what was counted, and by which rule. Raises `ArtifactError` for a file that is not
    understood; then nothing is written.
    """
    _check_options(steps=steps, image_size=image_size, fps=fps, conventions=conventions)
    if split is Split.EVALUATION:
        raise ArtifactError("nothing is ever learnt from evaluation states: choose another split")
    refuse_place(out)
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ArtifactError(f"there is something at {out} already, and it is left as it is: import to a new folder")
    files = files_in(sources)
    names = [os.fsencode(file.name).decode(errors="replace") for file in files]  # they need not be UTF-8
    settings = {
        "steps": steps,
        "image_size": image_size,
        "files": names,
        "pictures": "upright",
        "conventions": vars(conventions),
    } | ({"held_out": held_out} if held_out else {})
    with writing(out, Kind.EPISODES, settings=settings) as draft:
        imported = [one for file in files for one in _read(file, conventions)]
        _refuse_unlike(imported, image_size)
        cameras = imported[0].cameras
        _check_memory(len(imported) * len(cameras), steps, image_size or imported[0].episode.frames.shape[-2])
        numbered = [
            replace(at_size(lasting(one.episode, steps), image_size, len(one.cameras)), init_state=state)
            for one, state in zip(imported, _states(split, len(imported), held_out), strict=True)
        ]
        write_episodes(draft.folder, numbered, source="imported", policy_digest="unknown", fps=fps, cameras=cameras)
        draft.summary |= _summary(imported, numbered, files=len(files), split=split, steps=steps)
    return draft.manifest


def _states(split: Split, count: int, held_out: int) -> list[int]:
    """Initial states for so many episodes; every so many of them are of the split that nothing is trained on."""
    if not 0 <= held_out < count:
        raise ArtifactError(f"--held-out {held_out} of {count} episodes leaves none to learn from: give fewer")
    turns = [(i + 1) * held_out // count > i * held_out // count for i in range(count)]
    splits = [Split.KEYFRAMES if turn else split for turn in turns]
    return [one.ids(1, start=FIRST + i)[0] for i, one in enumerate(splits)]


def _summary(
    imported: Sequence[Imported], numbered: Sequence[Episode], *, files: int, split: Split, steps: int
) -> dict[str, Any]:
    """What was counted, and by which rule: `numbered` are the episodes as they were written."""
    rate = success_rate(sum(episode.succeeded for episode in numbered), len(numbered))
    return {
        "episodes": len(numbered),
        "split": split.name.lower(),
        "files": files,
        "instructions": dict(Counter(episode.instruction for episode in numbered)),
        "successes": rate.successes,
        "success_rate": rate.value,
        "interval": [rate.low, rate.high],
        "failures": len(numbered) - rate.successes,
        "cut": sum(len(one.episode.actions) > steps for one in imported),
        "successes_cut_off": sum(one.episode.succeeded for one in imported) - rate.successes,
        "success_rules": dict(Counter(one.success_rule for one in imported)),
        "masks": dict(Counter(mask for one in imported for mask in one.masks)),
        "cameras": list(imported[0].cameras),
        "pictures_in_files": dict(Counter(one.pictures for one in imported)),
        "pictures": "upright",
        "grip_width_known": sum(one.width_known for one in imported),
        "last_frame_repeated": sum(one.last_frame_repeated for one in imported),
        "actions_from": _rounded(torch.stack([one.episode.actions.amin(0) for one in imported]).amin(0)),
        "actions_to": _rounded(torch.stack([one.episode.actions.amax(0) for one in imported]).amax(0)),
        "action_dim": numbered[0].actions.shape[1],
        "pose_dim": numbered[0].pose.shape[1],
        "picture_size": [height := numbered[0].frames.shape[-2], height],
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def _read(file: Path, conventions: Conventions) -> list[Imported]:
    if file.suffix.lower() != ".npy":
        return read_hdf5(file, conventions)
    if conventions.mask is not None:
        raise ArtifactError(f"{file} has no masks, for it is one episode: leave --mask out, or the file")
    if conventions.cameras not in (None, ("agentview",)):
        raise ArtifactError(f"{file} has the pictures of one camera: leave --camera out, or the file")
    return [read_npy(file, conventions)]


def _check_options(*, steps: int, image_size: int | None, fps: int, conventions: Conventions) -> None:
    _check_task(f"--steps {steps}", horizon=steps)
    if image_size is not None:
        _check_task(f"--image-size {image_size}", image_size=image_size)
    if strange := set(conventions.cameras or ()) - set(CAMERAS):
        raise ArtifactError(f"--camera {', '.join(sorted(strange))}: choose of {', '.join(CAMERAS)}")
    if not 1 <= fps <= MAX_FPS:
        raise ArtifactError(f"{fps} steps a second is no rate of a robot: --fps is 1 to {MAX_FPS}")
    if conventions.success_at is not None and not np.isfinite(conventions.success_at):
        raise ArtifactError(f"a reward of {conventions.success_at} is never reached: give --success-at as a number")


def _check_memory(count: int, steps: int, size: int) -> None:
    needed, memory = count * (steps + 1) * size**2 * 3, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ArtifactError(
            f"{count} episodes of {steps} steps in pictures of {size} pixels are {needed / 2**30:,.0f} GiB, the memory "
            f"is {memory / 2**30:,.0f}: import fewer files at once, or lower --steps or --image-size"
        )


def _check_task(what: str, **values: int) -> None:
    """Refuse what no task can have, by the task's own bounds."""
    try:
        TaskSettings.model_validate(values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{what} fits no task: {reason}") from error


def _refuse_unlike(imported: Sequence[Imported], image_size: int | None) -> None:
    """Episodes of one artifact have one robot and one size of picture, a square one, for a task knows no other."""
    first = imported[0]
    for one in imported:
        frames = one.episode.frames[:]
        if len(frames) > 2 and (frames == frames[0]).all():
            raise ArtifactError(
                f"{one.where} has the same picture at every step, so its camera stood still or drew nothing: leave it "
                f"out, or render it again"
            )
        for name in ("actions", "pose"):
            size, wanted = (getattr(each.episode, name).shape[1] for each in (one, first))
            if size != wanted:
                raise ArtifactError(
                    f"{one.where} has {name} of {size} numbers, {first.where} of {wanted}: import them apart"
                )
        if one.cameras != first.cameras:
            raise ArtifactError(
                f"{one.where} was seen by {', '.join(one.cameras)}, {first.where} by {', '.join(first.cameras)}: "
                f"choose cameras that all have, with --camera"
            )
        (height, width), (wanted, _) = (each.episode.frames.shape[-2:] for each in (one, first))
        width //= len(one.cameras)
        if image_size is None and not height == width == wanted:
            raise ArtifactError(
                f"{one.where} has pictures of {height} x {width}, but a task knows squares of one size: "
                f"give one with --image-size"
            )
    if image_size is None:
        size = first.episode.frames.shape[-2]
        _check_task(f"{first.where} has pictures of {size} x {size}, and without --image-size that", image_size=size)


def export_episodes(episodes: Path, *, out: Path) -> list[Path]:
    """One HDF5 file for each instruction, named after it, in a new folder that appears when all are written."""
    if out.exists() or out.is_symlink():
        raise ArtifactError(f"there is something at {out} already, and it is left as it is: export to a new folder")
    refuse_place(out)
    read_manifest(episodes, Kind.EPISODES)
    exported = read_episodes(episodes)
    if exported[0].pose.shape[1] != 7:
        raise ArtifactError(
            f"{episodes} has poses of {exported[0].pose.shape[1]} numbers, but HDF5 keeps seven: where a hand is, how "
            f"turned, how wide its grip. Export episodes of an arm"
        )
    if (stride := exported[0].picture_stride) > 1:
        raise ArtifactError(
            f"{episodes} has a picture every {stride} steps, but HDF5 keeps one a step: collect with "
            f"task.picture_stride 1"
        )
    by_name: dict[str, list[Episode]] = {}
    for episode in exported:
        by_name.setdefault(f"{file_name(episode.instruction)}_demo.hdf5", []).append(episode)
    draft = out.parent / f".{uuid4().hex[:8]}.exporting"
    draft.mkdir(parents=True)
    try:
        for name, group in sorted(by_name.items()):
            write_hdf5(draft / name, group, cameras_of(episodes))
        os.rename(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # gone already when all went well
    return [out / name for name in sorted(by_name)]


def files_in(sources: Sequence[Path]) -> list[Path]:
    """Files to import, each once; what lies in a folder and is of another format is passed over."""
    found: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise ArtifactError(f"there is nothing at {source}: give .hdf5 or .npy files, or folders of them")
        if not source.is_dir() and source.suffix.lower() not in FORMATS:
            raise ArtifactError(f"{source} is none of {', '.join(FORMATS)}: give files of these kinds, or their folder")
        for file in sorted(source.iterdir()) if source.is_dir() else [source]:
            if file.suffix.lower() not in FORMATS or file.is_dir() or (source.is_dir() and file.name.startswith(".")):
                continue  # hidden files are what other programs leave behind
            if not file.is_file():
                raise ArtifactError(f"{file} is no plain file, or a link to nowhere: remove it, or put a copy there")
            found.setdefault(file.resolve(), file)
    if not found:
        raise ArtifactError(
            f"there is no .hdf5 or .npy file in {', '.join(map(str, sources))} itself, and folders in it are not "
            f"searched: give the folders that hold the files. Other formats are converted first"
        )
    return list(found.values())


def lasting(episode: Episode, steps: int) -> Episode:
    """The episode with so many actions: cut, or standing still at its end with the last command of its gripper."""
    taken = episode.actions[:steps]
    missing = steps - len(taken)
    rest = torch.zeros(missing, taken.shape[1])
    if len(taken):
        rest[:, -1] = taken[-1, -1]

    def longer(values: Tensor) -> Tensor:
        first = values[: len(taken) + 1]
        return torch.cat([first, first[-1:].expand(missing, *first.shape[1:])])

    return replace(
        episode,
        actions=torch.cat([taken, rest]),
        frames=longer(episode.frames[:]),
        pose=longer(episode.pose),
        success=longer(episode.success),
    )


def at_size(episode: Episode, size: int | None, cameras: int = 1) -> Episode:
    """The episode in square pictures of that many pixels, one of each camera side by side."""
    if size is None or episode.frames.shape[-2:] == (size, size * cameras):
        return episode

    def resized(picture: Tensor) -> np.ndarray:
        return np.asarray(Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((size, size)))

    frames = [np.concatenate([resized(view) for view in frame.chunk(cameras, -1)], 1) for frame in episode.frames]
    return replace(episode, frames=torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous())
