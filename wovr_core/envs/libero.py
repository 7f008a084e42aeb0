"""LIBERO's four suites in MuJoCo: the paper's benchmark, one process per environment.

An action is a change of the hand's pose and a gripper command, as the robosuite controller takes it: (dx, dy, dz) in
units of 5 cm, a rotation vector in units of 0.5 rad, and the gripper, > 0 closes; 20 a second. One camera looks from
the front (`agentview`), one from the wrist (`robot0_eye_in_hand`), both upright; they draw only when somebody looks.
`fast` rendering (decimation.py) is another look of the same scenes: one mode for everything that learns or is measured
together, which is why it stands in every artifact's settings, with the other `task.options`.

Things lie where LIBERO's own sampler puts them, another way for every id, so there are initial states without end. The
50 that it stores for each task were drawn by it too, and serve to compare with papers (`starts="stored"`): then the
splits share them out, so that none serves two purposes: states 0-4 for demonstrations, 5-19 for collection, 20-24 for
keyframes, 25-49 for evaluation. The ids of a split go through its tasks in turn, and through its states; after the last
one they begin again, with other dice of the policy.
"""

import logging
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from wovr_core.artifacts.conventions import from_down, grip_width
from wovr_core.embodiment import LIBERO, EmbodimentError, LiberoOptions
from wovr_core.envs.splits import SPLIT_SIZE, Split, split_of
from wovr_core.protocols import EnvironmentLostError
from wovr_core.settings import TaskSettings
from wovr_core.trajectory import Observation

SUITES = get_args(LiberoOptions.model_fields["suite"].annotation)
MAX_STEPS = {"libero_spatial": 280, "libero_object": 280, "libero_goal": 300, "libero_10": 520}  # as the field uses
STATES = {
    Split.DEMONSTRATION: range(0, 5),
    Split.COLLECTION: range(5, 20),
    Split.KEYFRAMES: range(20, 25),
    Split.EVALUATION: range(25, 50),
}
STORED = 50  # initial states of a task
JOINT_NOISE = 0.02  # rad, of the arm in the stored states
SETTLE = 10  # steps without a motion, while objects come to rest
PATIENCE = 180.0  # seconds for an answer of a process; the first reset of a task takes some 10
Starts = Literal["sampled", "stored"]
Rendering = Literal["fast", "standard", "none"]  # none: black pictures, for experts alone


class LiberoError(EmbodimentError):
    """LIBERO cannot be used here, and what to do about it."""


def place(init_state: int, tasks: Sequence[int], starts: Starts = "sampled") -> tuple[int, int]:
    """Task of the suite, and LIBERO's own initial state, behind an id; from `STORED` on, the seed of another one."""
    split = split_of(init_state)
    turn, task = divmod(init_state % SPLIT_SIZE, len(tasks))
    if starts == "sampled" or split is Split.PLAY:
        return tasks[task], STORED + init_state
    return tasks[task], STATES[split][turn % len(STATES[split])]


class Libero:
    """As many LIBERO environments at once as there are processes; what one resets and steps, the others do too."""

    def __init__(
        self,
        suite: str,
        tasks: Sequence[int],
        *,
        cameras: Sequence[str] = LIBERO.cameras,
        image_size: int = 128,
        starts: Starts = "sampled",
        rendering: Rendering = "fast",
        processes: int = 2,
    ) -> None:
        if suite not in SUITES:
            raise LiberoError(f"there is no suite {suite!r}: choose one of {', '.join(SUITES)}")
        if not tasks or any(not 0 <= task < 10 for task in tasks):
            raise LiberoError(f"tasks are {list(tasks)}, but a suite has tasks 0 to 9: name at least one of them")
        self.suite, self.tasks, self.image_size, self.starts = suite, tuple(tasks), image_size, starts
        self._shape = (processes, image_size, image_size * len(cameras), 3)
        self._shared = SharedMemory(create=True, size=int(np.prod(self._shape)))
        self._arguments = (suite, tuple(cameras), rendering, self._shared.name, self._shape)
        self._workers: list[_Worker] = []
        self._active: list[_Worker] = []
        try:
            self._workers = [_Worker(self._arguments, slot) for slot in range(processes)]
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Environments of the last reset."""
        return len(self._active)

    @property
    def capacity(self) -> int:
        """Episodes at once."""
        return len(self._workers)

    def batches(self, ids: Sequence[int]) -> Iterator[list[int]]:
        """Positions in `ids` to be tried together: of one task as far as possible, for to change it takes seconds."""
        order = sorted(range(len(ids)), key=lambda i: self._place(ids[i])[0])
        for first in range(0, len(order), self.capacity):
            yield order[first : first + self.capacity]

    def reset(self, ids: Sequence[int], split: Split) -> Observation:
        """Lay out the scenes of these initial states, which must belong to `split`, and let them settle."""
        ids = list(ids)
        split.check(ids)
        if not 0 < len(ids) <= self.capacity:
            raise LiberoError(f"{len(ids)} episodes for {self.capacity} processes: take them in `batches`")
        self._active = self._workers[: len(ids)]
        self._instructions = tuple(self._all("reset", [(self._place(i),) for i in ids]))
        return self.observe()

    def observe(self) -> Observation:
        """What the cameras and the arm's own encoders report."""
        pose = torch.tensor(np.stack(self._all("look")), dtype=torch.float32)
        pictures = np.ndarray(self._shape, np.uint8, self._shared.buf)[: len(self._active)]
        frames = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).contiguous()
        return Observation(frames=frames, instructions=self._instructions, pose=pose)

    def step(self, actions: Float[Tensor, "env 7"]) -> Bool[Tensor, " env"]:
        """Move; returns whether each task's goal holds now."""
        commands = actions.clamp(-1, 1).double().numpy()
        return torch.tensor(self._all("step", [(command,) for command in commands]))

    def states(self) -> list[np.ndarray]:
        """The simulator's own state of each environment; for tests and experts, never for a policy."""
        return self._all("state")

    def call(self, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """Let `function(environment, memory, ...)` look at each environment in its own process, as an expert must.

        The memory is a dictionary that lasts until the next reset.
        """
        each = zip(*arguments, strict=True) if arguments else [()] * len(self._active)
        return self._all("call", [(function, *one) for one in each])

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []
        with suppress(FileNotFoundError):
            self._shared.close()
            self._shared.unlink()

    def __enter__(self) -> "Libero":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _place(self, init_state: int) -> tuple[int, int]:
        return place(init_state, self.tasks, self.starts)

    def _all(self, word: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Ask every environment at once, and wait for all answers; the dead are replaced, and that is told."""
        for worker, one in zip(self._active, arguments or [()] * len(self._active), strict=True):
            worker.ask(word, *one)
        answers = [worker.answer() for worker in self._active]
        lost = [worker for worker in self._active if not worker.alive]
        if lost:
            end = f"{lost[0].end} (exit code {lost[0].process.exitcode})"
            self._workers = [_Worker(self._arguments, w.slot) if w in lost else w for w in self._workers]
            raise EnvironmentLostError(f"LIBERO's process {lost[0].slot} {end} and was replaced")
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def open_libero(task: TaskSettings) -> Libero:
    """The environments that the settings describe."""
    options = task.options
    assert isinstance(options, LiberoOptions)
    return Libero(
        options.suite,
        options.tasks,
        cameras=task.cameras,
        image_size=task.image_size,
        starts=options.starts,
        rendering=options.rendering,
        processes=options.processes,
    )


class _Worker:
    """The near end of one environment's process."""

    def __init__(self, arguments: tuple[Any, ...], slot: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.slot, (self._pipe, far) = slot, context.Pipe()
        self.process = context.Process(target=_serve, args=(far, slot, *arguments), daemon=True, name=f"libero-{slot}")
        self.process.start()
        far.close()
        self.alive, self.end = True, "died"

    def ask(self, word: str, *arguments: Any) -> None:
        try:
            self._pipe.send((word, arguments))
        except OSError:
            self._bury()

    def answer(self) -> Any:
        try:
            if self.alive and not self._pipe.poll(PATIENCE):
                self.end = f"gave no answer within {PATIENCE:g} s, perhaps for want of processor time,"
            elif self.alive:
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        self._bury()

    def stop(self) -> None:
        if self.alive:
            self.ask("close")
            self.process.join(5)
        self._bury()

    def _bury(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _serve(
    pipe: Connection,
    slot: int,
    suite: str,
    cameras: Sequence[str],
    rendering: Rendering,
    name: str,
    shape: tuple[int, ...],
) -> None:
    """The far end: answers one question after another until told to close."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ |= {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}  # a core each: no threads of the renderer's own
    shared = SharedMemory(name=name)
    frame = np.ndarray(shape, np.uint8, shared.buf)[slot]
    env = _Environment(suite, cameras, rendering, frame)
    while True:
        try:
            word, arguments = pipe.recv()
        except EOFError:  # the parent is gone
            break
        if word == "close":
            break
        try:
            answer = getattr(env, word)(*arguments)
        except Exception as error:
            answer = LiberoError(f"{suite}: {type(error).__name__}: {error}")
        pipe.send(answer)
    env.close()
    del frame, env
    shared.close()


class _Environment:
    """One LIBERO environment, of one task at a time, in a process of its own."""

    def __init__(self, suite: str, cameras: Sequence[str], rendering: Rendering, frame: np.ndarray) -> None:
        self.suite, self.cameras, self.rendering, self.frame = suite, cameras, rendering, frame
        self.image_size = len(frame)
        self.task: int | None = None
        self.env: Any = None
        self.memory: dict[str, Any] = {}  # of an expert

    def reset(self, place: tuple[int, int]) -> str:
        """Lay out an initial state, exactly as ever; says the task's instruction."""
        task, state = place
        if self.task != task:
            self._open(task)
        np.random.seed(state)  # where the fixtures stand is drawn anew at every reset, and no part of the state
        self.env.reset()
        if state < STORED:
            self.env.set_init_state(self.init_states[state])
        else:
            self._move_joints()
        for robot in self.env.env.robots:  # what an episode before has left in controller and gripper
            robot.controller.update(force=True)
            robot.controller.reset_goal()
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        self.memory = {}
        for _ in range(SETTLE):
            self.step(np.array([0.0] * 6 + [-1.0]))
        return str(self.instruction)

    def _move_joints(self) -> None:
        """As in the stored states: the sampler itself begins with the arm at the same place every time."""
        (robot,) = self.env.env.robots
        self.env.sim.data.qpos[robot._ref_joint_pos_indexes] += JOINT_NOISE * np.random.randn(7)
        self.env.sim.forward()

    def step(self, action: np.ndarray) -> bool:
        from wovr_core.envs.physics import each_step_once

        with each_step_once(self.env.sim):
            self.observed, _, holds, _ = self.env.step(action)
        return bool(holds)

    def look(self) -> np.ndarray:
        """Draw what the cameras see into the frame; returns the pose (7 numbers)."""
        for i, camera in enumerate(self.cameras if self.rendering != "none" else ()):
            picture = self.env.sim.render(camera_name=camera, width=self.image_size, height=self.image_size)
            self.frame[:, i * self.image_size : (i + 1) * self.image_size] = picture[::-1]  # it comes upside down
        turn = from_down(Rotation.from_quat(self.observed["robot0_eef_quat"]))
        width = grip_width(self.observed["robot0_gripper_qpos"])
        return np.concatenate([self.observed["robot0_eef_pos"], turn, width])

    def state(self) -> np.ndarray:
        return np.array(self.env.get_sim_state())

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.env, self.memory, *arguments)

    def close(self) -> None:
        if self.env is not None:
            self.env.close()
            self.env = None

    def _open(self, task: int) -> None:
        self.close()
        found = task_of(self.suite, task)
        self.instruction, self.init_states = found.instruction, found.init_states
        with redirect_stdout(None):
            from libero.libero.envs.env_wrapper import ControlEnv

        random.seed(0)
        draws = self.rendering != "none"
        env = ControlEnv(
            bddl_file_name=str(found.scene),
            camera_names=list(self.cameras),
            horizon=10**9,
            camera_heights=self.image_size,
            camera_widths=self.image_size,
            use_camera_obs=draws,
            has_offscreen_renderer=draws,
            has_renderer=False,
        )
        env.seed(0)
        env.reset()
        for camera in self.cameras if draws else ():  # drawn when somebody looks, not at every step
            env.env.modify_observable(f"{camera}_image", "enabled", False)
        env.env.hard_reset = False  # from here on a reset keeps the model: 30 ms instead of 3 s
        if self.rendering == "fast":
            from wovr_core.envs.decimation import render_fast

            render_fast(env.env.sim, self.image_size)
        self.env, self.task = env, task


class LiberoTask(NamedTuple):
    """One task of a suite, as LIBERO tells it."""

    scene: Path  # its description
    instruction: str
    goals: list[list[str]]  # predicate and what it is about: ["on", "plate_1", ...]
    init_states: np.ndarray  # (50, numbers)


def check_installed() -> None:
    """Raises `LiberoError` where LIBERO is not installed."""
    os.environ.setdefault("MUJOCO_GL", "egl")  # it is read when the simulator is imported
    logging.disable(logging.WARNING)  # robosuite wants a file of macros, which nobody needs
    try:
        with redirect_stdout(None):  # it greets
            import libero.libero.benchmark
            import libero.libero.envs.env_wrapper  # noqa: F401, and with it the simulator
    except ImportError as error:
        raise LiberoError(
            f"LIBERO cannot be imported ({error}): make libero, or pip install 'wovr[libero]' and the Debian packages "
            f"libosmesa6 libegl1 libgles2"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def task_of(suite: str, task: int) -> LiberoTask:
    """Raises `LiberoError` where LIBERO is not installed."""
    check_installed()
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    with redirect_stdout(None):
        chosen = benchmark.get_benchmark(suite)(task_order_index=0)
    found = chosen.get_task(task)
    scene = Path(get_libero_path("bddl_files")) / found.problem_folder / found.bddl_file
    goals = robosuite_parse_problem(str(scene))["goal_state"]
    return LiberoTask(scene, found.language, goals, np.asarray(chosen.get_task_init_states(task)))
