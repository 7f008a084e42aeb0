"""A gateway with an arm that is only arithmetic, to be run in a process that is killed; a policy server's double."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from pydantic import SecretStr

from components.serving.policy.schema import ActionNumber, ActResponse, PolicyMetadata, Timing
from components.serving.robot.arm import ConnectionLostError, UserStopError
from components.serving.robot.cameras import CameraFrame, FreshCamera
from components.serving.robot.executor import ExecutorSettings
from components.serving.robot.fake_arm import FakeArm
from components.serving.robot.gateway import create_app
from components.serving.robot.service import RobotService
from components.serving.robot.trials import Trials, TrialsSettings
from components.serving.robot.trials_api import add_trials
from wovr_core.evaluation.sequential import StopRule
from wovr_core.franka.limits import SafetyLimits
from wovr_core.franka.plan import TrialPlan, plan_trials

JOB, OPERATOR, POLICY = "job-key-0123456789", "operator-key-0123456789", "policy-key-0123456789"
RATE = 50.0


class TableCamera:
    """Looks at a table with a block; `folder`/block says where it lies (pixels), `folder`/hurt what fails."""

    def __init__(self, name: str, arm: FakeArm, folder: Path) -> None:
        self.name, self.arm, self.folder = name, arm, folder
        self._noise = np.random.default_rng(0)

    def read(self) -> CameraFrame:
        image = np.empty((240, 320, 3), np.int16)
        image[:] = np.linspace((70, 84, 96), (150, 130, 105), 240)[:, None]
        image[120:] -= 12
        block = self.folder / "block"
        left = int(block.read_text() or 150) if block.exists() else 150
        image[150:180, left : left + 34] = (226, 168, 40)
        try:
            pose = self.arm.state().pose
        except ConnectionLostError:
            pose = np.zeros(7)
        x, y = int(160 + 300 * pose[1]), int(190 - 300 * pose[2] + 40)
        image[: max(1, y), max(0, x - 12) : x + 12] = (225, 228, 232)
        image[max(0, y - 14) : max(1, y), max(0, x - 22) : x + 22] = (40, 46, 54)
        image += self._noise.integers(-3, 4, image.shape, dtype=np.int16)
        return CameraFrame(image=image.clip(0, 255).astype(np.uint8), time=time.monotonic())

    def close(self) -> None:
        pass


class Policies:
    """What a policy server answers about tokens, slowly or not at all if it is asked to. For `tests.listening`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []  # the token and the whole request of each act
        self.seconds = 0.0
        self.refuses = 0  # so many of the next acts are answered 503
        self.metadata_refuses = 0
        self.scale = 0.04
        self.chunk = 8

    def __call__(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        if headers.get("Authorization") != f"Bearer {POLICY}":
            return 401, _problem("no key")
        if path.startswith("/v1/metadata?policy="):
            if self.metadata_refuses:
                self.metadata_refuses -= 1
                return 503, _problem("it is being loaded")
            return 200, self.metadata().model_dump()
        if self.refuses:
            self.refuses -= 1
            return 503, _problem("too many ask")
        self.asked.append((body["policy"], body))
        time.sleep(self.seconds)
        actions = np.zeros((8, 7))
        actions[:, 1] = self.scale * (-1) ** len(self.asked)
        actions[:, 6] = -1
        timing = Timing(queue_ms=0, policy_ms=1, total_ms=1)
        answer = f"answer-{len(self.asked)}"
        return 200, ActResponse(
            answer=answer, actions=actions.tolist(), policy=None, version=None, digest=None, timing=timing
        ).model_dump()

    def metadata(self) -> PolicyMetadata:
        names = ("x", "y", "z", "roll", "pitch", "yaw", "grip")
        return PolicyMetadata(
            environment="franka",
            actions=[ActionNumber(name=name, low=-1, high=1, unit="0.05 m") for name in names],
            gripper="grip: above 0 closes",
            rate_hz=RATE,
            chunk=self.chunk,
            image_size=64,
            cameras=["table"],
            pose=list(names),
            policy=None,
            version=None,
            digest=None,
            statistics_digest=None,
        )


def _problem(what: str) -> dict[str, Any]:
    return {"error": {"what": what, "where": "the server", "do": "wait"}}


def a_plan(pairs: int = 2, horizon: int = 16, instruction: str = "put the yellow block into the bowl") -> TrialPlan:
    plan, _ = plan_trials(StopRule(pairs=pairs), [instruction], assumed_success=0.6, horizon=horizon)
    return plan


def hurt(arm: FakeArm, folder: Path) -> None:
    """Do what the test wrote into `folder`/hurt."""
    path = folder / "hurt"
    while True:
        time.sleep(0.02)
        if not path.exists():
            continue
        what = path.read_text()
        path.unlink()
        if what == "user stop":
            arm.hurt(UserStopError("the user stop was pressed"))
        elif what == "lost":
            arm.hurt(ConnectionLostError("the arm does not answer"))
        elif what == "release":
            arm.release()


def serve_gateway(
    folder: Path, port: int, rate: float = RATE, cameras: tuple[str, ...] = ("table", "wrist"), policy_key: str = POLICY
) -> None:
    arm = FakeArm()
    threading.Thread(target=hurt, args=(arm, folder), daemon=True).start()
    looking = [FreshCamera(TableCamera(name, arm, folder)) for name in cameras]
    execution = ExecutorSettings(policy_patience=15, watchdog=5, clock_patience=30)
    service = RobotService(arm, looking, SafetyLimits(rate=rate, age=20), execution=execution, lease_seconds=4)
    app = create_app(service, SecretStr(JOB))
    trials = Trials(service, folder / "trials", TrialsSettings(video_hz=5), policy_key=policy_key)
    add_trials(app, trials, SecretStr(OPERATOR))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
