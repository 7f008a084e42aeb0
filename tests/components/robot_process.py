"""A gateway in a process of its own, in the middle of a trial: to be killed."""

import sys

import numpy as np
import uvicorn
from pydantic import SecretStr

from components.serving.robot.franky_arm import FrankyArm, FrankySettings
from components.serving.robot.gateway import create_app
from components.serving.robot.service import RobotService
from wovr_core.franka.limits import SafetyLimits


def back_and_forth(observation) -> np.ndarray:
    """A policy that goes to one side and back, at 0.2 m/s."""
    chunk = np.zeros((8, 7))
    chunk[:, 1] = 0.4 if observation.pose[1] < 0.05 else -0.4
    chunk[:, 6] = -1
    return chunk


def main(host: str, port: int) -> None:
    arm = FrankyArm(FrankySettings(host=host, realtime=False))
    service = RobotService(arm, [], SafetyLimits(), lease_seconds=600)
    service.lease.take("test")
    service.arm_by("test")
    service.start_trial(back_and_forth, "wave", home=False)
    uvicorn.run(create_app(service, SecretStr("0123456789abcdef")), host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
