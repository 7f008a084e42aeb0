"""Turns of a hand, as rotation vectors seen in the arm's base frame, in radians.

A hand's turn is measured from pointing straight down (`from_down` in `wovr_core/artifacts/conventions.py`, which needs
torch and so is not for the robot's PC): its rotation is the turn times `DOWN`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
DOWN = Rotation.from_rotvec([np.pi, 0, 0])  # of a hand that points at the table; it is its own inverse


def turned(turn: Array, by: Array) -> Array:
    """A turn (3,) after a further one in the base frame, as robosuite's controller composes them; at most pi long."""
    after: Array = (Rotation.from_rotvec(by) * Rotation.from_rotvec(turn)).as_rotvec()
    return after


def angle_between(turn: Array, other: Array) -> float:
    """Radians in [0, pi] from one turn to another."""
    return float((Rotation.from_rotvec(other) * Rotation.from_rotvec(turn).inv()).magnitude())


def tilt(turn: Array) -> float:
    """Radians in [0, pi] between the tool's axis and straight down."""
    axis = Rotation.from_rotvec(turn).apply([0.0, 0.0, 1.0])
    return float(np.arccos(np.clip(axis[2], -1.0, 1.0)))
