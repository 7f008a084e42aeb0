"""Which initial states serve which purpose: ranges of ids that never mix.

An environment turns an initial-state id into a scene, always the same one. What keeps an evaluation honest is
that nobody collects, dreams or tunes on the ids it uses, so every reset names its split and is checked.
"""

from enum import Enum

from wovr_core.artifacts.manifest import ArtifactError
from wovr_core.setting_types import SPLIT_STATES

SPLIT_SIZE = SPLIT_STATES


class SplitError(ValueError):
    """Initial states that a purpose does not have."""


class Split(Enum):
    """A purpose, and the million initial-state ids that belong to it."""

    DEMONSTRATION = 0  # scripted demonstrations that make the base policy
    COLLECTION = 1  # real episodes that train the world model and the reward
    KEYFRAMES = 2  # real episodes held out of all training: fidelity, calibration, and starts of dreams
    EVALUATION = 3  # candidate and baseline are compared here, and nothing else ever happens here
    PLAY = 4  # task-free play with other colours and sizes, for the pretrained backbone

    def ids(self, count: int, *, start: int = 0) -> range:
        """`count` ids of this split from its `start`-th on."""
        if start < 0 or count < 0 or start + count > SPLIT_SIZE:
            raise SplitError(
                f"{self.name.lower()} has {SPLIT_SIZE} initial states: cannot take {count} from the {start}-th on"
            )
        first = self.value * SPLIT_SIZE + start
        return range(first, first + count)

    def check(self, ids: "range | list[int]") -> None:
        """Refuse ids that belong to another purpose."""
        strangers = [i for i in ids if i // SPLIT_SIZE != self.value]
        if strangers:
            raise SplitError(
                f"initial state {strangers[0]} does not belong to the {self.name.lower()} split "
                f"[{self.value * SPLIT_SIZE}, {(self.value + 1) * SPLIT_SIZE}); take ids from Split.{self.name}.ids(n)"
            )


def split_of(init_state: int) -> Split:
    """The split an initial-state id belongs to."""
    number = init_state // SPLIT_SIZE
    if number not in {split.value for split in Split}:
        raise ArtifactError(
            f"initial state {init_state} belongs to no split, they end at {len(Split) * SPLIT_SIZE}: collect again"
        )
    return Split(number)
