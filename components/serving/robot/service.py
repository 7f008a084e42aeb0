"""The robot as the gateway's endpoints use it: lease, arming, stop, home, recovery, pictures, one trial at a time."""

import io
import logging
import threading
from collections.abc import Callable, Sequence

from components.serving.robot.arm import Arm, ArmError, ArmState
from components.serving.robot.cameras import Camera
from components.serving.robot.executor import (
    Act,
    ExecutedTrial,
    Executor,
    ExecutorSettings,
    NotArmedError,
    RobotObservation,
    Signals,
)
from components.serving.robot.lease import Lease
from wovr_core.franka.limits import SafetyLimits

PERIOD = 0.05  # wall seconds between two looks at the lease
log = logging.getLogger(__name__)


class UnknownCameraError(LookupError):
    """No camera of this name."""


class RobotService:
    """One arm and its cameras. Its methods may be called from several threads."""

    def __init__(
        self,
        arm: Arm,
        cameras: Sequence[Camera],
        limits: SafetyLimits,
        *,
        execution: ExecutorSettings | None = None,
        lease_seconds: float = 5.0,
    ) -> None:
        self.arm, self.lease = arm, Lease(lease_seconds)
        self.cameras = {camera.name: camera for camera in cameras}
        self.executor = Executor(arm, cameras, limits, execution)
        self.signals = Signals()  # of the trial that runs, or ran last
        self.trial: ExecutedTrial | None = None  # the last one, once it has ended
        self.armed_by = ""
        self._thread: threading.Thread | None = None
        self._camera_lock = threading.Lock()

    @property
    def armed(self) -> bool:
        return self.executor.armed.is_set() and bool(self.lease.client)

    @property
    def running(self) -> bool:
        """Does a trial run now?"""
        return self._thread is not None and self._thread.is_alive()

    def state(self) -> ArmState:
        return self.arm.state()

    def take(self, client: str) -> str:
        """The token of a new lease; what another client armed is disarmed. Raises `LeaseHeldError`."""
        token = self.lease.take(client)
        self.disarm()
        return token

    def arm_by(self, person: str) -> None:
        """A person beside the arm says that it may move, once. Raises `UserStopError` while the stop is pressed."""
        if self.running:
            raise NotArmedError("a trial is running already: stop it or wait for its end")
        self.arm.recover(confirmed=True)
        self.armed_by = person
        self.executor.armed.set()
        log.info("armed by %s", person)

    def disarm(self) -> None:
        self.executor.armed.clear()

    def stop(self) -> None:
        """Stop whatever moves, and disarm. Raises `ConnectionLostError`: then the arm has stopped by itself."""
        self.signals.stop.set()
        self.disarm()
        self.arm.stop()

    def home(self) -> None:
        """Send the arm home. Raises `NotArmedError`, `ArmError`."""
        if self.running:
            raise NotArmedError("a trial is running: stop it or wait for its end")
        if not self.armed:
            raise NotArmedError("nobody has armed the robot: look at the cell, then arm it")
        self.arm.home()

    def recover(self) -> None:
        """Clear a recoverable reflex or a lost connection; what needs a person is cleared by arming."""
        if not self.running:
            self.arm.recover()

    def picture(self, camera: str) -> bytes:
        """The newest picture of a camera as JPEG. Raises `UnknownCameraError`, `CameraError`."""
        from PIL import Image

        if camera not in self.cameras:
            raise UnknownCameraError(f"there is no camera {camera!r}: there are {', '.join(self.cameras) or 'none'}")
        with self._camera_lock:
            image = self.cameras[camera].read().image
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def start_trial(
        self,
        act: Act,
        instruction: str,
        *,
        done: Callable[[RobotObservation], bool] | None = None,
        ended: Callable[[ExecutedTrial], None] | None = None,
        home: bool = True,
    ) -> None:
        """Run a trial on a thread of its own; `ended` is called with what came of it. Raises `NotArmedError`."""
        if self.running:
            raise NotArmedError("a trial is running already: stop it or wait for its end")
        if not self.armed:
            raise NotArmedError("nobody has armed the robot: look at the cell, then arm it")
        self.signals, self.trial = Signals(), None
        signals = self.signals

        def work() -> None:
            over = threading.Event()
            watch = threading.Thread(target=self._watch_lease, args=(signals, over), name="lease", daemon=True)
            watch.start()
            trial = self.executor.run(act, instruction, signals=signals, done=done, home=home)
            over.set()
            watch.join()
            log.info("trial ended: %s (%s)", trial.end, trial.reason)
            self.trial = trial
            if ended:
                ended(trial)

        self._thread = threading.Thread(target=work, name="trial", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> ExecutedTrial | None:
        """What came of the trial, if it ends within so many seconds."""
        if self._thread:
            self._thread.join(seconds)
        return self.trial

    def close(self) -> None:
        self.signals.stop.set()
        self.join(30.0)
        self.arm.close()
        for camera in self.cameras.values():
            camera.close()

    def _watch_lease(self, signals: Signals, over: threading.Event) -> None:
        """The trial ends when nobody holds the lease any more."""
        while not over.wait(PERIOD):
            if not self.lease.client:
                signals.gone.set()
                try:
                    self.arm.stop()
                except ArmError:
                    log.warning("the arm does not answer: it stops by itself")
                return
