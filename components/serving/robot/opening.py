"""Which arm and cameras a gateway has, as settings, and how they are opened."""

from pkgutil import resolve_name
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.serving.robot.arm import Arm, ArmError
from components.serving.robot.cameras import (
    Camera,
    CameraError,
    FreshCamera,
    OpenCvCamera,
    RealSenseCamera,
    SimulatedCamera,
)
from components.serving.robot.executor import ExecutorSettings
from components.serving.robot.fake_arm import FakeArm
from components.serving.robot.franky_arm import FrankyArm, FrankySettings
from components.serving.robot.service import RobotService
from wovr_core.franka.limits import SafetyLimits
from wovr_core.section import Section

Label = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


class CameraSettings(Section):
    """One camera, by the name that policies know it by."""

    name: Label
    kind: Literal["realsense", "opencv", "simulated"]
    device: str = ""  # serial number (realsense), number or address (opencv), port (simulated); empty: the first


class RobotSettings(Section):
    """One cell: its arm, its cameras, its limits."""

    arm: str = "franka"  # franka, fake, or "module:function" of a package of yours, called without arguments
    franka: FrankySettings | None = None
    cameras: tuple[CameraSettings, ...] = ()
    limits: SafetyLimits = SafetyLimits()
    execution: ExecutorSettings = ExecutorSettings()
    lease_seconds: Annotated[float, Field(ge=0.5, le=60)] = 5.0  # wall seconds without a word of the operator

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = [camera.name for camera in self.cameras]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"cameras name {name} twice: each needs a name of its own")
        return self


def open_robot(cfg: RobotSettings) -> RobotService:
    """Connect to arm and cameras; nothing moves. Raises `ArmError`, `CameraError`."""
    arm = open_arm(cfg)
    cameras: list[Camera] = []
    try:
        for camera in cfg.cameras:
            cameras.append(FreshCamera(open_camera(camera)))
    except Exception:
        for camera in cameras:
            camera.close()
        arm.close()
        raise
    return RobotService(arm, cameras, cfg.limits, execution=cfg.execution, lease_seconds=cfg.lease_seconds)


def open_arm(cfg: RobotSettings) -> Arm:
    """The arm that the settings name. Raises `ArmError`."""
    if cfg.arm == "fake":
        return FakeArm()
    if cfg.arm == "franka":
        if cfg.franka is None:
            raise ArmError("franka names no arm: write franka.host, the address of its control box")
        return FrankyArm(cfg.franka)
    try:
        arm: Arm = resolve_name(cfg.arm)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ArmError(
            f"the arm {cfg.arm} cannot be opened ({error}): write franka, fake, or module:function of a package that "
            f"is installed here"
        ) from error
    return arm


def open_camera(cfg: CameraSettings) -> Camera:
    """A camera that the settings name. Raises `CameraError`."""
    if cfg.kind == "realsense":
        return RealSenseCamera(cfg.name, cfg.device)
    if cfg.kind == "opencv":
        return OpenCvCamera(cfg.name, int(cfg.device) if cfg.device.isdecimal() else cfg.device or 0)
    try:
        return SimulatedCamera(cfg.name, port=int(cfg.device))
    except (ValueError, OSError) as error:
        raise CameraError(
            f"the simulated camera {cfg.name} has no port {cfg.device!r} ({error}): write the one that the cell says"
        ) from error
