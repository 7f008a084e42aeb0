"""The gateway as a program, on the PC beside the arm: `wovr robot check|home|serve CELL.yaml`.

CELL.yaml holds `RobotSettings` (opening.py), and under `trials` those of `TrialsSettings`.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from components.serving.robot.opening import RobotSettings, open_robot
from components.serving.robot.service import RobotService
from components.serving.robot.trials import TrialsSettings
from wovr_core.setting_errors import SettingsError, explain
from wovr_core.strict_yaml import read_yaml

POLICY_KEY = "WOVR_ROBOT_POLICY_KEY"


class CellSettings(RobotSettings):
    """One cell, and how trials are made there."""

    trials: TrialsSettings = TrialsSettings()


def read_cell(path: Path) -> CellSettings:
    """Raises `SettingsError` that says what is wrong where, and `YamlError`."""
    tree: Any = read_yaml(path)
    try:
        return CellSettings.model_validate(tree or {})
    except ValidationError as error:
        raise SettingsError(explain(error, str(path), CellSettings)) from error


@contextmanager
def opened(cell: Path) -> Iterator[tuple[RobotService, CellSettings]]:
    """Arm and cameras of a cell while they are needed; nothing moves. Raises `ArmError`, `CameraError`."""
    cfg = read_cell(cell)
    service = open_robot(cfg)
    try:
        yield service, cfg
    finally:
        service.close()


def described(service: RobotService) -> Iterator[str]:
    """Where the arm is and what the cameras see, a line each; nothing moves."""
    state = service.state()
    place = ", ".join(f"{number:.3f}" for number in state.pose[:3])
    yield f"arm: {state.mode}, hand at ({place}) m, fingers {1000 * state.pose[6]:.0f} mm apart"
    for name in service.cameras:
        yield f"camera {name}: a picture of {len(service.picture(name)) // 1024} KiB"
    if not service.cameras:
        yield "no camera: policies that look need one or more"


def send_home(service: RobotService) -> None:
    """The arm moves: only after a person beside it has agreed. Raises `ArmError`."""
    service.take("robot home")
    service.arm_by("robot home")
    service.home()
    service.disarm()


def serve(
    service: RobotService,
    cfg: CellSettings,
    *,
    folder: Path,
    address: str,
    port: int,
    on_start: Callable[[], object] = lambda: None,
) -> None:
    """The gateway until a signal says stop. Raises `SettingsError` for a key that is missing or short."""
    import uvicorn

    from components.serving.robot.gateway import KEY, create_app
    from components.serving.robot.operators import OPERATOR_KEY
    from components.serving.robot.trials import Trials
    from components.serving.robot.trials_api import add_trials
    from components.serving.robot.trials_in_hand import router

    try:
        app = create_app(service, SecretStr(os.environ.get(KEY, "")), router)
        trials = Trials(service, folder, cfg.trials, policy_key=os.environ.get(POLICY_KEY, ""))
        add_trials(app, trials, SecretStr(os.environ.get(OPERATOR_KEY, "")))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    config = uvicorn.Config(
        app, host=address, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # uvicorn raises what it caught once more
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    on_start()
    server.run()
