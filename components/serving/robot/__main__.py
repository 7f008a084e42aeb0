"""The gateway as a program, on the PC beside the arm.

    python -m components.serving.robot check CELL.yaml    connect, say where the arm is and what the cameras see
    python -m components.serving.robot home CELL.yaml     send the arm home, once a person has said yes
    python -m components.serving.robot serve CELL.yaml    the gateway and its operator's page

CELL.yaml holds `RobotSettings` (opening.py), and under `trials` those of `TrialsSettings`:

    arm: franka
    franka: {host: 172.16.0.2}
    cameras: [{name: agentview, kind: realsense}, {name: robot0_eye_in_hand, kind: opencv, device: "0"}]

Keys come from the environment: $WOVR_ROBOT_KEY of the job, $WOVR_ROBOT_OPERATOR_KEY of the person, and
$WOVR_ROBOT_POLICY_KEY, one of the policy server's $WOVR_POLICY_TOKEN_KEYS.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from components.serving.robot.arm import ArmError
from components.serving.robot.cameras import CameraError
from components.serving.robot.opening import RobotSettings, open_robot
from components.serving.robot.service import RobotService
from components.serving.robot.trials import TrialsSettings
from wovr_core.franka.ledger import LedgerError
from wovr_core.strict_yaml import YamlError, read_yaml

POLICY_KEY = "WOVR_ROBOT_POLICY_KEY"


class CellSettings(RobotSettings):
    """One cell, and how trials are made there."""

    trials: TrialsSettings = TrialsSettings()


def read_cell(path: Path) -> CellSettings:
    """Raises `ValueError` that says what is wrong where."""
    tree: Any = read_yaml(path)
    try:
        return CellSettings.model_validate(tree or {})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error


def check(service: RobotService) -> None:
    """Where the arm is and what the cameras see; nothing moves."""
    state = service.state()
    place = ", ".join(f"{number:.3f}" for number in state.pose[:3])
    print(f"arm: {state.mode}, hand at ({place}) m, fingers {1000 * state.pose[6]:.0f} mm apart")
    for name in service.cameras:
        print(f"camera {name}: a picture of {len(service.picture(name)) // 1024} KiB")
    if not service.cameras:
        print("no camera: policies that look need some")


def home(service: RobotService) -> None:
    """Send the arm home. Raises `ArmError`; moves only where a person types yes."""
    if input("The arm will move. Is its way home free, and the stop in your hand? Type yes: ") != "yes":
        print("nothing moved")
        return
    service.take("robot home")
    service.arm_by("robot home")
    service.home()
    service.disarm()
    check(service)


def serve(service: RobotService, cfg: CellSettings, *, folder: Path, address: str, port: int) -> None:
    """The gateway until a signal says stop. Raises `ValueError` for a key that is missing or short."""
    import uvicorn

    from components.serving.robot.gateway import KEY, create_app
    from components.serving.robot.operators import OPERATOR_KEY
    from components.serving.robot.trials import Trials
    from components.serving.robot.trials_api import add_trials

    app = create_app(service, SecretStr(os.environ.get(KEY, "")))
    trials = Trials(service, folder, cfg.trials, policy_key=os.environ.get(POLICY_KEY, ""))
    add_trials(app, trials, SecretStr(os.environ.get(OPERATOR_KEY, "")))
    print(f"the operator's page: http://{address}:{port}", flush=True)
    uvicorn.run(app, host=address, port=port, log_level="warning", access_log=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m components.serving.robot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["check", "home", "serve"])
    parser.add_argument("cell", type=Path, help="the cell's settings file")
    parser.add_argument("--folder", type=Path, default=Path("trials"), help="of plans and recordings")
    parser.add_argument("--address", default="127.0.0.1", help="0.0.0.0 to be reached from elsewhere")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    try:
        cfg = read_cell(options.cell)
        service = open_robot(cfg)
        try:
            if options.what == "serve":
                serve(service, cfg, folder=options.folder, address=options.address, port=options.port)
            else:
                {"check": check, "home": home}[options.what](service)
        finally:
            service.close()
    except (ValueError, OSError, YamlError, ArmError, CameraError, LedgerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
