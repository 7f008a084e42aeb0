"""Rotations as rotation vectors (Rodrigues), for a PC that has numpy and nothing else.

A hand's turn is measured from pointing straight down (`wovr_core.artifacts.conventions.from_down`): its rotation is the
turn times `DOWN`. All angles are radians, all vectors are seen in the arm's base frame.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DOWN: Array = np.diag([1.0, -1.0, -1.0])  # (3, 3), of a hand that points at the table; it is its own inverse
SMALL = 1e-9  # rad; below it a turn is none


def matrix_of(vector: Array) -> Array:
    """The rotation matrix (3, 3) of a rotation vector (3,)."""
    angle = float(np.linalg.norm(vector))
    if angle < SMALL:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn


def vector_of(matrix: Array) -> Array:
    """The rotation vector (3,) of a rotation matrix (3, 3), at most pi long."""
    x, y, z, w = quaternion_of(matrix)
    if w < 0:
        x, y, z, w = -x, -y, -z, -w
    sine = float(np.linalg.norm([x, y, z]))
    if sine < SMALL:
        return np.zeros(3)
    vector: Array = np.array([x, y, z]) * (2 * np.arctan2(sine, w) / sine)
    return vector


def quaternion_of(matrix: Array) -> Array:
    """The unit quaternion (x, y, z, w) of a rotation matrix, from its largest part (Shepperd 1978)."""
    m = matrix
    squares = np.array([m[0, 0], m[1, 1], m[2, 2]]) @ (2 * np.eye(3) - 1) + 1  # 4 x², 4 y², 4 z²
    parts = np.array([*squares, 1 + np.trace(m)])  # and 4 w²
    largest = int(parts.argmax())
    if largest == 3:
        found = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], parts[3]])
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        found = np.zeros(4)
        found[i], found[j], found[k] = parts[i], m[j, i] + m[i, j], m[k, i] + m[i, k]
        found[3] = m[k, j] - m[j, k]
    unit: Array = found / np.linalg.norm(found)
    return unit


def turned(turn: Array, by: Array) -> Array:
    """A turn (3,) after a further one in the base frame, as robosuite's controller composes them."""
    return vector_of(matrix_of(by) @ matrix_of(turn))


def angle_between(turn: Array, other: Array) -> float:
    """Radians in [0, pi] from one turn to another."""
    return float(np.linalg.norm(vector_of(matrix_of(other) @ matrix_of(turn).T)))


def tilt(turn: Array) -> float:
    """Radians in [0, pi] between the tool's axis and straight down."""
    return float(np.arccos(np.clip(matrix_of(turn)[2, 2], -1.0, 1.0)))
