"""The settings of trials on a robot."""

from typing import Annotated

from pydantic import Field

from wovr_core.section import Section
from wovr_core.setting_errors import SettingsError
from wovr_core.setting_types import CountOrZero, Few, Gateway

Words = Annotated[str, Field(min_length=1, max_length=500)]
Milestone = Annotated[str, Field(min_length=1, max_length=200)]
Milestones = Annotated[tuple[Milestone, ...], Field(max_length=9)]  # a key of the operator's page each
MILESTONES = ("reached it", "grasped it", "lifted it", "put it there")  # of a task that picks and places


class FrankaSettings(Section):
    """Trials on a real arm: asked of the gateway beside it, which waits for its operator."""

    gateway: Gateway = ""  # http://robot.example:8000
    policy_server: Gateway = ""  # http://gpu.example:8100, where the gateway asks what a policy would do
    instructions: Annotated[tuple[Words, ...], Field(min_length=1)] = ("pick up the cube",)
    milestones: Milestones = MILESTONES  # on the way to success, in order: a trial's progress is their share
    episodes: Few = 50  # of each policy, at most: the trials end as soon as they say enough
    smallest_gain: Annotated[float, Field(gt=0, lt=1)] = 0.2  # worth detecting: they end too where it is not there
    control_every: CountOrZero = 10  # pairs between two in which the baseline is tried twice; 0: none
    patience_hours: Annotated[float, Field(gt=0, le=1000)] = 8.0

    def check_addresses(self) -> None:
        """Raise `SettingsError` where one of the two is not named."""
        if not self.gateway:
            raise SettingsError(
                "franka.gateway names no robot. Set it to the address of the gateway beside the arm, "
                "http://robot.example:8000"
            )
        if not self.policy_server:
            raise SettingsError(
                "franka.policy_server names none. Set it to the address at which `wovr serve-policy` answers, "
                "http://gpu.example:8100"
            )
