"""Whatever a policy answers, what reaches the arm is in the box and the cone, and slow enough; the rest is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from wovr_core.franka.limits import SafetyLimits, UnsafeChunkError, check_targets, inside, safe_targets
from wovr_core.franka.turns import angle_between, tilt, turned

LIMITS = SafetyLimits()
POSE = np.array([0.5, 0.0, 0.3, 0.0, 0.0, 0.0, 0.08])
STILL = np.zeros((8, 7)) - np.array([0, 0, 0, 0, 0, 0, 1.0])

anything = arrays(np.float64, (8, 7), elements=st.floats(allow_nan=True, allow_infinity=True))
plausible = arrays(np.float64, (8, 7), elements=st.floats(-1.1, 1.1))
gentle = st.tuples(st.floats(0.01, 0.6), arrays(np.float64, (8, 7), elements=st.floats(-1, 1))).map(
    lambda p: p[0] * p[1]
)
poses = st.tuples(
    st.floats(0.25, 0.75), st.floats(-0.4, 0.4), st.floats(0, 0.65), *[st.floats(-0.6, 0.6)] * 3, st.just(0.08)
).map(np.array)


def chunk_with(step: int, column: int, value: float) -> np.ndarray:
    chunk = STILL.copy()
    chunk[step, column] = value
    return chunk


def refused(chunk, **more) -> UnsafeChunkError:
    with pytest.raises(UnsafeChunkError) as caught:
        safe_targets(LIMITS, chunk, **({"pose": POSE} | more))
    return caught.value


@settings(max_examples=300, deadline=None)
@given(chunk=st.one_of(gentle, plausible, anything), pose=poses, past=st.lists(poses, max_size=12))
def test_a_target_that_passes_is_inside_every_limit(chunk, pose, past):
    history = np.array(past) if past else None
    try:
        targets = safe_targets(LIMITS, chunk, pose=pose, history=history)
    except UnsafeChunkError as error:
        assert str(error)
        return
    assert targets.shape == (8, 7) and np.isfinite(targets).all()
    assert all(inside(LIMITS, target) for target in targets)
    axes = Rotation.from_rotvec(targets[:, 3:6]).apply([0, 0, -1])
    assert (np.degrees(np.arccos(np.clip(-axes[:, 2], -1, 1))) <= LIMITS.cone + 1e-6).all()
    path = np.concatenate([pose[None] if history is None else history, targets])
    steps = np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1)
    turns = (Rotation.from_rotvec(path[1:, 3:6]) * Rotation.from_rotvec(path[:-1, 3:6]).inv()).magnitude()
    assert (steps[-8:] <= LIMITS.translation_per_step + 1e-6).all()
    assert (turns[-8:] <= LIMITS.rotation_per_step + 1e-6).all()
    for end in range(len(steps) - 7, len(steps) + 1):
        assert steps[max(0, end - 10) : end].sum() <= LIMITS.translation_per_second + 1e-6
        assert turns[max(0, end - 10) : end].sum() <= LIMITS.rotation_per_second + 1e-6


@settings(max_examples=100, deadline=None)
@given(chunk=gentle.map(lambda c: 0.1 * c))
def test_a_gentle_chunk_in_the_middle_of_the_box_is_carried_out(chunk):
    chunk[:, 6] = -1
    targets = safe_targets(LIMITS, chunk, pose=POSE)
    np.testing.assert_allclose(targets[-1, :3], POSE[:3] + 0.05 * chunk[:, :3].sum(0))


@settings(max_examples=100, deadline=None)
@given(arrays(np.float64, 3, elements=st.floats(-0.9, 0.9)), st.floats(0, 1.5))
def test_a_turn_is_made_in_the_base_frame_and_measured_from_straight_down(turn, angle):
    about_z, about_x = np.array([0, 0, angle]), np.array([angle, 0, 0])
    assert angle_between(turn, turned(turn, about_z)) == pytest.approx(angle, abs=1e-6)
    assert tilt(turned(turn, about_z)) == pytest.approx(tilt(turn), abs=1e-6)  # about the vertical nothing tilts
    assert tilt(about_x) == pytest.approx(angle, abs=1e-6)
    np.testing.assert_allclose(turned(about_z, about_x), -turned(-about_x, -about_z), atol=1e-9)


@pytest.mark.parametrize(
    ("chunk", "more", "limit", "words"),
    [
        (np.zeros((8, 6)), {}, "shape", "(8, 6), but 8 actions of 7"),
        ("eight steps", {}, "shape", "no array of numbers"),
        (chunk_with(3, 1, np.nan), {}, "finite", "step 4: number 2 is nan"),
        (chunk_with(0, 0, np.inf), {}, "finite", "step 1: number 1 is inf"),
        (chunk_with(2, 0, 20.0), {}, "range", "step 3: a number of the action is 20"),  # a jump of 1 m
        (10 * chunk_with(0, 1, 0.5), {}, "range", "is 10"),
        (STILL, {"age": 1.5}, "age", "1.50 s old"),
        (STILL, {"age": float("nan")}, "age", "nan s old"),
        (STILL, {"history": POSE[None] + [0, 0.2, 0, 0, 0, 0, 0]}, "tracking", "20.0 cm from where it was sent"),
        (STILL, {"pose": POSE - [0, 0, 0.275, 0, 0, 0, 0]}, "box", "step 1: z is 0.025 m, 5.0 mm outside"),
        (chunk_with(4, 0, 1) + 0.3 * (np.arange(7) == 0), {}, "translation per step", "step 5: moves 0.065 m"),
        (STILL + 0.7 * (np.arange(7) == 1), {}, "translation per second", "step 8: 0.280 m within a second"),
        (chunk_with(1, 5, 0.9), {}, "rotation per step", "step 2: turns 0.450 rad"),
        (STILL + 0.35 * (np.arange(7) == 5), {}, "rotation per second", "step 5: 0.875 rad within a second"),
        (STILL + 0.35 * (np.arange(7) == 4), {}, "cone", "step 3: the tool is tilted 30.1 degrees"),
        (STILL * [1, 1, 1, 1, 1, 1, -1] ** np.arange(8)[:, None], {}, "gripper changes per second", "times within"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_a_refusal_names_the_step_the_limit_and_the_figures(chunk, more, limit, words):
    if limit == "translation per step":
        chunk = np.clip(chunk, -1.3, 1.0)
        chunk[4, :2] = 1.0, 0.83
    error = refused(chunk, **more)
    assert error.limit == limit and words in str(error)


def test_the_second_goes_on_across_chunks():
    slow = STILL + 0.5 * (np.arange(7) == 1)  # 0.25 m/s, as fast as may be
    first = safe_targets(LIMITS, slow, pose=POSE)
    arm = first[-1]
    second = safe_targets(LIMITS, -slow * (np.arange(7) == 1) + STILL, pose=arm, history=first)
    assert second[-1, 1] == pytest.approx(0)
    faster = STILL + 0.7 * (np.arange(7) == 1)
    safe_targets(LIMITS, STILL + 0.6 * (np.arange(7) == 1), pose=POSE)
    error = refused(faster - 2 * faster * (np.arange(7) == 1), pose=arm, history=first)
    assert error.limit == "translation per second" and error.step == 2


def test_poses_that_jump_between_two_chunks_are_refused():
    with pytest.raises(UnsafeChunkError) as caught:
        check_targets(LIMITS, POSE[None] + [0, 0.3, 0, 0, 0, 0, 0], pose=POSE)
    assert caught.value.limit == "translation per step" and caught.value.value == pytest.approx(0.3)


def test_a_box_without_room_is_refused():
    with pytest.raises(ValueError, match="no room within its margin"):
        SafetyLimits(box_low=(0.3, -0.3, 0.2), box_high=(0.7, 0.3, 0.21))
