"""A policy that picks by a script: it sees the cube, goes there and closes; its artifact says of which kind it is."""

import json

import numpy as np
import pytest
import torch

from wovr_core.artifacts import ArtifactError, Kind, writing
from wovr_core.embodiment import EmbodimentError, embodiment_named
from wovr_core.policy.scripted_pick import ABOVE, GRASP, LIFTED, SPEED, PickShape, ScriptedPick
from wovr_core.settings import TaskSettings
from wovr_core.store.environments import open_environment
from wovr_core.store.policies import open_any_policy, open_policy, write_scripted_pick
from wovr_core.trajectory import Observation

TASK = TaskSettings.model_validate({"environment": "franka", "cameras": ["agentview"], "image_size": 128})
HOME, OPEN = [0.46, 0.0, 0.40], 0.08


def seen(place, *, width=OPEN, cube=(0.5, 0.1)) -> Observation:
    """A table, and a yellow cube where the camera of the simulated cell would show it."""
    shape = PickShape()
    right, up = (np.array(axis) / np.linalg.norm(axis) for axis in (shape.right, shape.up))
    ahead, way = np.cross(up, right), np.array([*cube, shape.height]) - shape.camera_at
    size = 64 / np.tan(np.radians(shape.field_of_view / 2)) / (way @ ahead)
    column, row = 63.5 + size * (way @ right), 63.5 - size * (way @ up)
    frame = np.full((128, 128, 3), (150, 125, 100), np.uint8)
    rows, columns = np.mgrid[:128, :128]
    frame[(abs(rows - row) < 2.6) & (abs(columns - column) < 2.6)] = (230, 205, 25)
    return Observation(
        frames=torch.from_numpy(frame).permute(2, 0, 1)[None],
        instructions=("pick up the cube",),
        pose=torch.tensor([[*place, 0.0, 0.0, 0.0, width]]),
    )


def decided(observation: Observation, **shape) -> np.ndarray:
    policy = ScriptedPick(PickShape(**shape))
    return policy.act(observation, temperature=1.0, generator=torch.Generator()).actions[0].double().numpy()


def end(place, actions: np.ndarray) -> np.ndarray:
    return np.array(place) + 0.05 * actions[:, :3].sum(0)


def test_it_goes_where_the_cube_is_and_no_faster_than_it_may():
    place = np.array(HOME)
    for _ in range(3):
        actions = decided(seen(place))
        assert np.linalg.norm(0.05 * actions[:, :3], axis=1).max() <= SPEED + 1e-6
        assert (actions[:, 6] < 0).all()
        place = end(place, actions)
    assert place == pytest.approx([0.5, 0.1, GRASP], abs=0.01)


def test_it_closes_beside_the_cube_lifts_and_stays_there():
    low, high = [0.5, 0.1, GRASP], [0.5, 0.1, LIFTED]
    closing = decided(seen(low))
    assert (closing[:, 6] > 0).all() and end(low, closing) == pytest.approx(low)
    lifting = decided(seen(low, width=0.036))
    assert (lifting[:, 6] > 0).all() and end(low, lifting)[2] == pytest.approx(GRASP + 8 * SPEED, abs=1e-4)
    assert end(high, decided(seen(high, width=0.036))) == pytest.approx(high)


def test_without_a_cube_it_stays_where_it_is():
    assert end(HOME, decided(seen(HOME, cube=(9.0, 0.0)))) == pytest.approx(HOME)


def test_one_that_misjudges_the_side_errs_there_alone():
    over = [0.5, 0.16, ABOVE]
    assert end(over, decided(seen(over), stretch=1.6))[1] == pytest.approx(0.16, abs=0.01)
    assert end(HOME, decided(seen(HOME, cube=(0.5, 0.0)), stretch=1.6))[1] == pytest.approx(0.0, abs=0.005)


def test_its_artifact_is_opened_by_its_kind_and_learns_from_nobody(tmp_path):
    write_scripted_pick(PickShape(stretch=1.5), TASK, out=tmp_path / "pick")
    policy = open_any_policy(tmp_path / "pick", TASK)
    assert isinstance(policy, ScriptedPick) and policy.shape.stretch == 1.5
    with pytest.raises(ArtifactError, match="is a scripted_pick, which does not learn"):
        open_policy(tmp_path / "pick", TASK)
    with pytest.raises(ArtifactError, match="has image_size 128, but the task"):
        open_any_policy(tmp_path / "pick", TASK.model_copy(update={"image_size": 64}))


def test_a_kind_of_a_later_version_is_refused_by_name(tmp_path):
    with writing(tmp_path / "new", Kind.POLICY, settings={"kind": "flow"}) as draft:
        (draft.folder / "policy.json").write_text(json.dumps({}))
    with pytest.raises(ArtifactError, match=r"of the kind 'flow', and this version of WoVR opens tiny_vla"):
        open_any_policy(tmp_path / "new")


def test_an_arm_is_no_environment_and_says_what_it_is_for():
    with pytest.raises(EmbodimentError, match="wovr run --pipeline franka"), open_environment(TASK):
        pass
    with pytest.raises(EmbodimentError, match="wovr episodes import"):
        embodiment_named("franka").check()
