"""Episodes artifacts whose manifest is right and whose content is wrong, and good ones of another task."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.faults.harness import FUZZ, deadline, sign
from tests.toys import an_episode
from wovr_core.artifacts import (
    ArtifactError,
    Kind,
    check_episodes_fit,
    read_episodes,
    read_manifest,
    write_episodes,
    writing,
)
from wovr_core.artifacts.episodes import data_file
from wovr_core.artifacts.lerobot import CAMERA, EPISODES, INFO
from wovr_core.envs.splits import split_of
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Episode

FRONT, ROWS = CAMERA + "front", data_file(0)


@pytest.fixture
def folder(tmp_path) -> Path:
    episodes = [an_episode(steps=8, success_at=5, init_state=1_000_000 + i, shade=20 * i) for i in range(3)]
    with writing(tmp_path / "episodes", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, episodes, source="here", policy_digest="none")
    return tmp_path / "episodes"


Change = Callable[[pa.Table], pa.Table]


def rewrite(folder: Path, change: Change, *, groups: int | None = 9) -> None:
    """Change the rows; `groups` says how many make a row group, and None keeps them in one."""
    table = change(pq.read_table(folder / ROWS))
    pq.write_table(table, folder / ROWS, row_group_size=groups or len(table) or 1)
    about = pq.read_table(folder / EPISODES)  # where pictures lay says nothing any more
    pq.write_table(about.drop_columns([n for n in about.column_names if n.startswith("pictures/")]), folder / EPISODES)


def column(name: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None) -> Change:
    def apply(table: pa.Table) -> pa.Table:
        values = pa.array(change(table[name].to_pylist()), kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, values)

    return apply


def at(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value if i == row else old for i, old in enumerate(values)]


def a_png(size: tuple[int, int], mode: str = "RGB", form: str = "PNG") -> dict[str, Any]:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return {"bytes": file.getvalue(), "path": None}


def info(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tree = json.loads((folder / INFO).read_text())
        for path, value in values.items():
            branch, *_ = [tree["features"][path]] if path in tree["features"] else [tree]
            branch["shape" if path in tree["features"] else path] = value
        (folder / INFO).write_text(json.dumps(tree))

    return apply


def index(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        rows = pq.read_table(folder / EPISODES).to_pylist()
        pq.write_table(pa.Table.from_pylist([row | values for row in rows]), folder / EPISODES)

    return apply


def rows(change: Change, groups: int | None = 9) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, change, groups=groups)


def same(table: pa.Table) -> pa.Table:
    return table


def text(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one row group": (rows(same, None), "row groups of [27] rows"),
    "row groups of other lengths": (rows(same, 7), "an episode is one row group"),
    "no rows": (rows(lambda table: table[:0]), "row groups of"),
    "rows missing at the end": (rows(lambda table: table[:-1]), "row groups of"),
    "rows in another order": (rows(lambda table: table.take(pa.array([1, 0, *range(2, 27)]))), "in another order"),
    "episodes in another order": (rows(lambda t: pa.concat_tables([t[9:18], t[:9], t[18:]])), "another episode"),
    "NaN in an action": (rows(column("action", at(10, [0.0, np.nan, 0.0]))), "episode 1 has actions that are not"),
    "NaN in the last action": (rows(column("action", at(8, [0.0, np.nan, 0.0]))), "an action in its last row"),
    "an action of 5": (rows(column("action", at(10, [0.0, 5.0, 0.0]))), "episode 1 has actions that reach 5"),
    "infinity in a pose": (rows(column("observation.state", at(20, [np.inf, 0.0]))), "episode 2 has poses that"),
    "a missing action": (rows(column("action", at(10, None))), "episode 1 cannot be read"),
    "a missing success": (rows(column("success", at(10, None))), "episode 1 has rows without success"),
    "a missing picture": (rows(column(FRONT, at(10, None))), "episode 1"),
    "success where there was none": (rows(column("success", at(2, True))), "next.success"),
    "success in words": (rows(column("success", lambda v: ["no"] * len(v), pa.string())), "other columns"),
    "success in numbers": (rows(column("success", lambda v: [0.5] * len(v), pa.float32())), "other columns"),
    "actions of doubles": (rows(column("action", list, pa.list_(pa.float64(), 3))), "other columns"),
    "actions of four numbers": (rows(column("action", lambda v: [[0.0] * 4] * 27, pa.list_(pa.float32(), 4))), "other"),
    "no actions": (rows(lambda table: table.drop_columns(["action"])), "other columns"),
    "another column": (rows(lambda table: table.append_column("more", pa.array(range(27)))), "other columns"),
    "a larger picture": (rows(column(FRONT, at(10, a_png((9, 8))))), "a picture of 8 x 9 in RGB at frame 1"),
    "a grey picture": (rows(column(FRONT, at(10, a_png((8, 8), "L")))), "episode 1 has a picture of 8 x 8 in L"),
    "a JPEG": (rows(column(FRONT, at(10, a_png((8, 8), form="JPEG")))), "episode 1 cannot be read"),
    "half a picture": (rows(column(FRONT, at(10, {"bytes": a_png((8, 8))["bytes"][:45]}))), "episode 1 cannot"),
    "a picture elsewhere": (rows(column(FRONT, at(10, {"bytes": None, "path": "/etc/passwd"}))), "episode 1"),
    "info of another size": (info(**{FRONT: [8, 9, 3]}), "8 x 8 in RGB"),
    "info of a huge size": (info(**{FRONT: [10**6, 10**6, 3]}), "GiB"),
    "info of other actions": (info(action=[7]), "other columns"),
    "info of no actions": (info(action=[]), "cannot be read"),
    "pictures that are not upright": (info(pictures="openvla"), "pictures are 'openvla', but upright ones are read"),
    "info without features": (info(features={}), "cannot be read"),
    "info that is no JSON": (text(INFO, b"{"), "cannot be read"),
    "info that is a list": (text(INFO, b"[]"), "cannot be read"),
    "rows that are no table": (text(ROWS, b"PAR1"), "cannot be read"),
    "an index that is no table": (text(EPISODES, b""), "cannot be read"),
    "an index of other lengths": (index(length=8), "of [8, 8, 8]"),
    "an index without instruction": (index(tasks=[]), "episode 0"),
    "an index of two instructions": (index(tasks=["a", "b"]), "episode 0"),
    "an empty instruction": (index(tasks=[""]), "episode 0 has the instruction ''"),
    "an instruction of 5000 letters": (index(tasks=["a" * 5000]), "episode 0 has an instruction of 5000"),
    "an initial state in words": (index(init_state="no"), "episode 0 has the initial state no"),
    "no initial state": (index(init_state=None), "episode 0"),
    "half an initial state": (index(init_state=1_000_000.5), "episode 0 has the initial state 1000000.5"),
    "a negative initial state": (index(init_state=-1), "episode 0 has the initial state -1"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_content_under_a_right_manifest_is_told(folder, fault):
    change, complaint = WRONG[fault]
    change(folder)
    sign(folder)
    with pytest.raises(ArtifactError) as error, deadline(20, fault):
        for episode in read_episodes(folder):
            episode.frames[:]
    assert str(error.value).startswith(str(folder)) and complaint in str(error.value), error.value


def test_what_others_call_episodes_is_told_with_the_way_in(folder, tmp_path):
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"a LeRobot dataset that wovr did not write.*wovr episodes import"):
        read_manifest(folder, Kind.EPISODES)
    (tmp_path / "lift.hdf5").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"lift\.hdf5 is a file.*wovr episodes import"):
        read_manifest(tmp_path / "lift.hdf5", Kind.EPISODES)


def test_an_initial_state_of_no_split_is_told():
    with pytest.raises(ArtifactError, match="initial state 7000000 belongs to no split"):
        split_of(7_000_000)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("actions", lambda values: values * torch.nan),
        ("actions", lambda values: values + 2),
        ("pose", lambda values: values * torch.inf),
        ("pose", lambda values: values[:, :1]),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, name, change):
    good = an_episode(steps=8)
    bad = Episode(**{**vars(good), name: change(getattr(good, name))})
    with pytest.raises(ArtifactError, match=f"episode 0 has {name}"):
        write_episodes(tmp_path / "never", [bad], source="here", policy_digest="none")
    with pytest.raises(ArtifactError, match="episode 0 has no actions"):
        write_episodes(tmp_path / "never", [an_episode(steps=0)], source="here", policy_digest="none")
    assert not (tmp_path / "never").exists()


def test_old_pictures_are_not_taken_for_new_ones():
    """The task looks more often than these episodes were looked at; the other way round there is a picture for all."""
    seldom, fitting = replace(an_episode(steps=16), picture_stride=8), {"image_size": 8, "horizon": 16}
    with pytest.raises(ArtifactError, match=r"every 8 steps, the task every 1 by task.picture_stride"):
        check_episodes_fit([seldom], TaskSettings.model_validate(fitting), "episodes")
    often = TaskSettings.model_validate(fitting | {"picture_stride": 8})
    check_episodes_fit([seldom, an_episode(steps=16)], often, "episodes")


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ({"image_size": 16}, "frames of (3, 8, 8)"),
        ({"horizon": 24}, "has 16 actions"),
        ({"environment": "libero"}, "actions of 3 numbers"),
    ],
)
def test_episodes_of_another_task_are_told_before_any_work(task, complaint):
    episodes, fitting = [an_episode(steps=16)], {"image_size": 8, "horizon": 16}
    check_episodes_fit(episodes, TaskSettings.model_validate(fitting), "episodes")
    with pytest.raises(ArtifactError) as error:
        check_episodes_fit(episodes, TaskSettings.model_validate(fitting | task), "runs/mine/episodes")
    assert "runs/mine/episodes" in str(error.value) and complaint in str(error.value), error.value


def test_random_damage_is_told(folder):
    """Any byte of any file, with a manifest that vouches for it: read, or refused in words."""
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"}
    outcomes = {"read": 0, "refused": 0}
    for case in range(FUZZ):
        rng = np.random.default_rng(case)
        path = list(whole)[rng.integers(len(whole))]
        content = bytearray(whole[path])
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        sign(folder)
        with deadline(20, f"case {case}"):
            try:
                for episode in read_episodes(folder):
                    assert episode.actions.isfinite().all() and episode.pose.isfinite().all(), f"case {case}"
                    assert episode.frames[:].shape == (9, 3, 8, 8), f"case {case}"
                outcomes["read"] += 1
            except ArtifactError as error:
                outcomes["refused"] += 1
                assert str(folder) in str(error), f"case {case}: {error}"
        path.write_bytes(whole[path])
    print(outcomes)
    assert min(outcomes.values()) > 0, outcomes
