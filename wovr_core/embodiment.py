"""What an environment or a robot is: one registered `Embodiment` each. `task.environment` names it.

To add one, write a file with an `Embodiment` in it, and name that in the entry points of your package:

    [project.entry-points."wovr.environments"]
    my-arm = "my_arm:EMBODIMENT"

or call `register(EMBODIMENT)` where you call the steps yourself. What is heavy (a simulator, torch) an embodiment names
as "module:function", so reading settings imports none of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wovr_core.section import Section

GROUP = "wovr.environments"  # of entry points


class EmbodimentError(RuntimeError):
    """An environment that cannot be used here, and what to do about it."""


class UnknownEnvironmentError(ValueError):
    """A name under which no environment is registered."""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A reflection that makes a scene of a scene: of its picture, its actions and its poses."""

    sideways: bool  # left and right of the picture change places
    upside_down: bool  # and its top and bottom
    action: tuple[float, ...]  # what each number of an action is multiplied by: 1 or -1
    pose: tuple[float, ...]  # what each number of a pose is multiplied by, as seen from the centre: 1 or -1
    centre: tuple[float, ...]  # the pose that is its own mirror image


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One environment or robot. The functions it names are written "module:function"."""

    name: str
    action: tuple[str, ...]  # names of an action's numbers, each in [-1, 1]; the last one is the gripper, > 0 closes it
    pose: tuple[str, ...]  # names of the numbers that tell where the hand is: those an action moves, in the same order
    fps: int  # steps a second
    motion_unit: str = "the environment's own"  # what 1 of a motion means, for who moves an arm by it
    turn_unit: str = "the environment's own"  # what 1 of a turn means
    cameras: tuple[str, ...]  # that it has; `task.cameras` says which of them are used
    horizon: int  # steps of an episode, where `task.horizon` does not say
    open: str  # (task) -> Env
    demonstrate: str | None = None  # (env, policy settings, generator=) -> Decide; None: bring a policy of your own
    staged_contact: str | None = None  # (world model, tries=, seed=, image_size=) -> list[Contact], for the report
    check_installed: str | None = None  # () -> None, or raises EmbodimentError
    options: type[Section] = Section  # what `task.options` may say
    mirrors: tuple[Mirror, ...] = ()  # each mirror image of a scene is a scene too, and teaches
    hand_in_picture: bool = False  # a pose is (x, y) in the picture, in [0, 1]; False: a backbone knows the camera

    def __post_init__(self) -> None:
        for mirror in self.mirrors:
            sizes = len(mirror.action), len(mirror.pose), len(mirror.centre)
            if sizes != (self.action_dim, self.pose_dim, self.pose_dim):
                raise ValueError(
                    f"a mirror of {self.name} has {sizes[0]} numbers for an action, {sizes[1]} and {sizes[2]} for a "
                    f"pose, but these have {self.action_dim} and {self.pose_dim}: give one for each"
                )

    @property
    def action_dim(self) -> int:
        """Numbers of an action."""
        return len(self.action)

    @property
    def turns(self) -> tuple[int, ...]:
        """Which numbers of an action turn the hand: those named roll, pitch or yaw."""
        return tuple(i for i, name in enumerate(self.action) if name in ("roll", "pitch", "yaw"))

    @property
    def pose_dim(self) -> int:
        """Numbers of a pose."""
        return len(self.pose)

    def check(self) -> None:
        """Raise `EmbodimentError` where something that it needs is not installed."""
        if self.check_installed:
            self.function(self.check_installed)()

    def function(self, reference: str) -> Callable[..., Any]:
        """The function that one of the fields names. Raises `EmbodimentError` where there is none."""
        try:
            found: Callable[..., Any] = resolve_name(reference)
        except (ImportError, AttributeError, ValueError) as error:
            raise EmbodimentError(
                f"the environment {self.name} names {reference}, which cannot be imported ({error}): install what it "
                f'needs, or name it "module:function"'
            ) from error
        return found


# ------------------------------------------------------------------------------------------------------ the registry


def environment_names() -> list[str]:
    """Every name that `task.environment` may be."""
    return sorted({*_registered, *entry_points(group=GROUP).names})


def embodiment_named(name: str) -> Embodiment:
    """The embodiment of this name. Raises `UnknownEnvironmentError`, which lists those there are."""
    if name in _registered:
        return _registered[name]
    for point in entry_points(group=GROUP, name=name):
        try:
            found = point.load()
        except Exception as error:  # whatever somebody's module does when it is imported
            raise UnknownEnvironmentError(
                f"the environment {name!r} is in {point.value}, which cannot be imported ({type(error).__name__}: "
                f"{error}): mend or remove the package it came with"
            ) from error
        if not isinstance(found, Embodiment) or found.name != name:
            raise UnknownEnvironmentError(
                f"the entry point {name!r} of {GROUP} names {point.value}, which is no Embodiment of that name: "
                f"name one"
            )
        register(found)
        return found
    raise UnknownEnvironmentError(
        f"there is no environment {name!r}. Known are {', '.join(environment_names())}. To add one, name its "
        f"Embodiment in the entry points {GROUP} of a package, or call wovr_core.embodiment.register"
    )


def register(embodiment: Embodiment) -> None:
    """Make an embodiment known, in this process."""
    if _registered.get(embodiment.name, embodiment) != embodiment:
        raise ValueError(f"there is another environment {embodiment.name!r} already: choose another name")
    _registered[embodiment.name] = embodiment


# ------------------------------------------------------------------------------------------------------ those we have


def _on_the_table(*, sideways: bool, upside_down: bool) -> Mirror:
    x, y = -1.0 if sideways else 1.0, -1.0 if upside_down else 1.0
    return Mirror(sideways=sideways, upside_down=upside_down, action=(x, y, 1.0), pose=(x, y), centre=(0.5, 0.5))


TABLETOP = Embodiment(
    name="tabletop",
    action=("dx", "dy", "gripper"),
    pose=("x", "y"),  # in table lengths, from the picture's top left
    fps=10,
    motion_unit="0.06 table lengths",
    cameras=("above",),
    horizon=48,
    open="wovr_core.envs.tabletop:open_tabletop",
    demonstrate="wovr_core.envs.experts.tabletop:demonstrator",
    staged_contact="wovr_core.evaluation.contact:contact_curve",
    mirrors=(  # the table has no left or right, and what is said names none
        _on_the_table(sideways=True, upside_down=False),
        _on_the_table(sideways=False, upside_down=True),
        _on_the_table(sideways=True, upside_down=True),
    ),
    hand_in_picture=True,
)


class LiberoOptions(Section):
    """Which of LIBERO's tasks, and how they are drawn."""

    suite: Literal["libero_spatial", "libero_object", "libero_goal", "libero_10"] = "libero_spatial"
    tasks: Annotated[tuple[Annotated[int, Field(ge=0, le=9)], ...], Field(min_length=1)] = tuple(range(10))
    starts: Literal["sampled", "stored"] = "sampled"  # by LIBERO's own sampler, without end; or its 50 a task
    rendering: Literal["fast", "standard"] = "fast"  # another look: never two of them in one run
    processes: Annotated[int, Field(ge=1, le=1000)] = 2  # an environment each

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"task.options.tasks are {list(self.tasks)}: name each task once")
        return self


LIBERO = Embodiment(
    name="libero",
    action=("dx", "dy", "dz", "roll", "pitch", "yaw", "gripper"),
    pose=("x", "y", "z", "roll", "pitch", "yaw", "grip"),  # m; a turn from pointing down, rad; the grip's width, m
    fps=20,
    motion_unit="0.05 m",
    turn_unit="0.5 rad",
    cameras=("agentview", "robot0_eye_in_hand"),
    horizon=280,
    open="wovr_core.envs.libero:open_libero",
    demonstrate="wovr_core.envs.experts.libero:demonstrator",
    check_installed="wovr_core.envs.libero:check_installed",
    options=LiberoOptions,
)

FRANKA = Embodiment(
    name="franka",
    action=("dx", "dy", "dz", "roll", "pitch", "yaw", "gripper"),
    pose=("x", "y", "z", "roll", "pitch", "yaw", "grip"),  # m, of the arm's base frame; rad and m as LIBERO's
    fps=10,
    motion_unit="0.05 m",
    turn_unit="0.5 rad",
    cameras=("agentview", "wrist"),
    horizon=200,
    open="wovr_core.envs.franka:open_franka",
    check_installed="wovr_core.envs.franka:refuse",
)

_registered = {found.name: found for found in (TABLETOP, LIBERO, FRANKA)}
