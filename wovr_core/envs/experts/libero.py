"""A scripted demonstrator for LIBERO's tasks of picking things up and putting them somewhere.

It looks at the simulator's state and at the meshes; it makes demonstrations, and never runs during or after
reinforcement learning. The grasp comes from the thing's own shape, from above: across its narrow side if that fits
between the fingers, else at a rim that nothing stands near. What was missed or dropped is tried again, at the next
grasp. Goals that are no picking up (drawers, the stove's knob, the microwave's door) it does not know: it says so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import cv2
import mujoco
import numpy as np
import torch
from torch import Tensor

from wovr_core.envs.libero import Libero, LiberoError
from wovr_core.protocols import Decide
from wovr_core.settings import PolicySettings
from wovr_core.trajectory import Observation

MOVES = ("in", "on")  # goals that picking up and putting down fulfils
WIDEST = 0.074  # metres between open fingers
TIP = 0.012  # a fingertip reaches so far below the point the controller moves
OPEN, SHUT = -1.0, 1.0
STEP, TURN = 0.05, 0.5  # what an action of 1 moves (metres) and turns (radians)
CLEAR = 0.05  # metres above everything on the way


def demonstrator(env: Libero, cfg: PolicySettings, *, generator: torch.Generator) -> Decide:
    """Decides as `demonstrate` does."""

    def decide(observation: Observation) -> Tensor:
        seed = int(torch.randint(2**31, (), generator=generator))
        return demonstrate(env, noise=cfg.action_noise, seed=seed)

    return decide


def demonstrate(env: Libero, *, noise: float, seed: int) -> Tensor:
    """The experts' next action (env, 1, 7): they look after every step.

    `noise` is added to every motion, in actions. Both are heard at the first step of an episode.
    """
    arguments = [noise] * len(env), range(seed, seed + len(env))
    return torch.from_numpy(np.stack(env.call(_next, *arguments))).float()[:, None]


def _next(env: Any, memory: dict[str, Any], noise: float, seed: int) -> np.ndarray:
    if "expert" not in memory:
        memory["expert"] = fulfil(env.env, noise=noise, rng=np.random.default_rng(seed))
    return next(memory["expert"])


def fulfil(scene: Any, *, noise: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Actions that fulfil a scene's goals, one after the other, and then rest."""
    goals = scene.parsed_problem["goal_state"]
    if strange := unknown(goals):
        raise LiberoError(f"the demonstrator picks things up and puts them down; it does not know how to {strange}")
    arm = Hand(scene, noise, rng)
    for goal in goals:
        yield from put(arm, goal)
    while True:
        yield arm.rest()


def unknown(goals: Sequence[Sequence[str]]) -> str:
    """The goals among these that the demonstrator does not know; nothing if it knows all."""
    return ", ".join(" ".join(goal) for goal in goals if goal[0].lower() not in MOVES)


def put(arm: "Hand", goal: Sequence[str]) -> Iterator[np.ndarray]:
    """Pick a thing up and put it in or on a place, as often as it takes."""
    _, thing, place = goal
    for attempt in count():
        grasps, bottom, top = plan_grasps(arm.scene, thing, place)
        grasp = grasps[attempt % len(grasps)]
        rim, over = rim_of(arm.scene, place)
        high = max(rim, top) + grasp.point[2] - bottom + CLEAR
        yield from _try(arm, grasp, thing, place, high, over)
        if arm.scene._eval_predicate(goal):
            return


def _try(arm: "Hand", grasp: "GraspPose", thing: str, place: str, high: float, over: bool) -> Iterator[np.ndarray]:
    """Once, with this grasp, carrying `high` and letting go there if `over`; ends early if it is missed or dropped."""
    before = arm.position(thing)[2]

    def above() -> np.ndarray:
        point = grasp.point + np.array([0, 0, 0.08])
        if np.linalg.norm((point - arm.hand)[:2]) > 0.06:  # not there yet: stay above what stands in the way
            point[2] = max(point[2], min(arm.hand[2], high))
        return point

    def at_grasp() -> np.ndarray:
        return grasp.point

    def up() -> np.ndarray:
        return np.array([*grasp.point[:2], high])

    def risen() -> bool:
        return bool(arm.hand[2] > high - 0.03)

    def in_hand() -> np.ndarray:
        return arm.hand - arm.position(thing)

    def dropped() -> bool:
        return bool(np.linalg.norm(in_hand()) > 0.15)

    def over_place() -> np.ndarray:
        return np.array([*(place_of(arm.scene, place) + in_hand())[:2], high])

    def arrived() -> bool:
        return dropped() or bool(np.linalg.norm((over_place() - arm.hand)[:2]) < 0.015)

    def down() -> np.ndarray:
        height = high - 0.06 if over else place_of(arm.scene, place)[2] + in_hand()[2] + 0.012
        return np.array([*over_place()[:2], height])

    def away() -> np.ndarray:
        return np.array([*arm.hand[:2], high + CLEAR])

    yield from arm.go(above, grasp.turn, OPEN, steps=60, near=0.015, straight=0.08)
    yield from arm.go(at_grasp, grasp.turn, OPEN, steps=30, near=0.006, speed=0.6)
    yield from arm.go(at_grasp, grasp.turn, SHUT, steps=10, speed=0.3)
    yield from arm.go(up, grasp.turn, SHUT, steps=50, until=risen)
    if arm.position(thing)[2] - before < 0.03:
        return  # it stayed where it was
    yield from arm.go(over_place, grasp.turn, SHUT, steps=80, until=arrived)
    if not dropped():
        yield from arm.go(down, grasp.turn, SHUT, steps=35, near=0.012, speed=0.6, until=dropped)
    if dropped():
        yield arm.rest(rise=0.5)
        return
    for _ in range(6):
        yield arm.rest()
    yield from arm.go(away, grasp.turn, OPEN, steps=12, speed=0.6)


class Hand:
    """The hand's pose, and actions that bring it somewhere."""

    def __init__(self, scene: Any, noise: float, rng: np.random.Generator) -> None:
        self.scene, self.noise, self.rng = scene, noise, rng
        self.site = scene.robots[0].eef_site_id

    @property
    def hand(self) -> np.ndarray:
        return self.scene.sim.data.site_xpos[self.site].copy()

    def position(self, thing: str) -> np.ndarray:
        return self.scene.sim.data.body_xpos[self.scene.obj_body_id[thing]].copy()

    def rest(self, *, rise: float = 0.0) -> np.ndarray:
        return np.array([0, 0, rise, 0, 0, 0, OPEN])

    def go(
        self,
        point: Callable[[], np.ndarray],
        turn: np.ndarray,
        grip: float,
        *,
        steps: int,
        near: float = 0.0,
        straight: float = np.inf,
        speed: float = 1.0,
        until: Callable[[], bool] | None = None,
    ) -> Iterator[np.ndarray]:
        """Towards a point and an orientation, for at most `steps`; ends when both are near, or `until` holds."""
        for _ in range(steps):
            way = point() - self.hand
            now = self.scene.sim.data.site_xmat[self.site].reshape(3, 3)
            rotation = _rotation_vector(turn @ now.T)
            move = np.clip(2.0 * way / STEP, -speed, speed)
            action = np.array([*move, *np.clip(1.5 * rotation / TURN, -1, 1), grip])
            action[:6] += self.noise * self.rng.normal(size=6)
            yield np.clip(action, -1, 1)
            if (until and until()) or (np.linalg.norm(way) < near and np.linalg.norm(rotation) < straight):
                return


@dataclass(frozen=True)
class GraspPose:
    """Where the fingers close, and the hand's orientation (a rotation matrix)."""

    point: np.ndarray
    turn: np.ndarray


def plan_grasps(scene: Any, thing: str, place: str) -> tuple[list[GraspPose], float, float]:
    """Grasps of a thing from above, the best first, and the heights of its bottom and top."""
    points = surface(scene, scene.get_object(thing).root_body)
    low, high = points.min(0), points.max(0)
    (x, y), (width, depth), degrees = cv2.minAreaRect(points[:, :2].astype(np.float32))
    angle = np.deg2rad(degrees) + (0 if width <= depth else np.pi / 2)
    tall = high[2] - low[2]
    if min(width, depth) > WIDEST:
        return _at_the_rim(scene, thing, place, low, high, (width + depth) / 4), low[2], high[2]
    z = max(low[2] + TIP + 0.003, high[2] - 0.035) if tall > 0.04 else low[2] + max(TIP - 0.002, tall / 2)
    deeper = z - 0.008 if tall > 0.04 else z
    across = angle + np.pi / 2 if max(width, depth) < WIDEST else angle
    return (
        [GraspPose(np.array([x, y, z]), _down(angle)), GraspPose(np.array([x, y, deeper]), _down(across))],
        low[2],
        high[2],
    )


def _at_the_rim(
    scene: Any, thing: str, place: str, low: np.ndarray, high: np.ndarray, radius: float
) -> list[GraspPose]:
    """Around the rim, where neither hand nor fingers touch anything else, near the arm's own orientation first."""
    others = [surface(scene, it.root_body) for name, it in scene.objects_dict.items() if name not in (thing, place)]
    others += [volume(scene, it.root_body) for it in scene.fixtures_dict.values()]
    obstacles, centre = np.concatenate(others), (low + high) / 2
    scored = []
    for angle in np.deg2rad(np.arange(-165, 181, 15)):
        out = np.array([np.cos(angle), np.sin(angle)])
        point = np.array([*(centre[:2] + out * (radius - 0.006)), high[2] - 0.012])
        from_point = obstacles[:, :2] - point[:2]
        along, beside = np.abs(from_point @ out), np.abs(from_point @ [-out[1], out[0]])
        hand = (along < 0.115) & (beside < 0.045) & (obstacles[:, 2] > point[2] + 0.04)
        fingers = (along < 0.058) & (beside < 0.018) & (obstacles[:, 2] > point[2] - TIP)
        twist = abs(angle % np.pi - np.pi / 2)
        scored.append((3.0 * hand.any() + 2.0 * fingers.any() + 0.5 * twist + 0.05 * (out[1] < 0), point, angle))
    return [GraspPose(point, _down(angle)) for _, point, angle in sorted(scored, key=lambda one: one[0])]


def place_of(scene: Any, place: str) -> np.ndarray:
    """The point a thing is to be brought to: of an object, or of a site of a fixture."""
    if place in scene.obj_body_id:
        return scene.sim.data.body_xpos[scene.obj_body_id[place]].copy()
    return scene.sim.data.get_site_xpos(place).copy()


def rim_of(scene: Any, place: str) -> tuple[float, bool]:
    """Height to carry things over, and whether they are dropped from there, as into the basket."""
    if "basket" in place:
        return surface(scene, scene.get_object(place.split("_contain")[0]).root_body)[:, 2].max(), True
    return place_of(scene, place)[2], False


def surface(scene: Any, body: str) -> np.ndarray:
    """Vertices (n, 3) of a body's meshes, in the world; its origin if it has none."""
    model, data = scene.sim.model._model, scene.sim.data._data
    found = []
    for geom in _geoms(scene, body):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
            found.append(_in_the_world(data, geom, vertices[:: max(1, len(vertices) // 3000)]))
    return np.concatenate(found) if found else data.xpos[scene.sim.model.body_name2id(body)][None].copy()


def volume(scene: Any, body: str) -> np.ndarray:
    """Points (n, 3) that fill the boxes around a body's parts, in the world."""
    model, data = scene.sim.model._model, scene.sim.data._data
    axis = np.linspace(-1, 1, 7)
    grid = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    found = [data.xpos[scene.sim.model.body_name2id(body)][None].copy()]
    for geom in _geoms(scene, body):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH or model.geom_contype[geom]:
            middle, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
            found.append(_in_the_world(data, geom, middle + grid * half))
    return np.concatenate(found)


def _geoms(scene: Any, body: str) -> Iterator[int]:
    """What a body and the bodies fixed to it are made of."""
    model, root = scene.sim.model._model, scene.sim.model.body_name2id(body)
    for geom in range(model.ngeom):
        at = model.geom_bodyid[geom]
        while at not in (0, root):
            at = model.body_parentid[at]
        if at == root:
            yield geom


def _in_the_world(data: Any, geom: int, points: np.ndarray) -> np.ndarray:
    return points @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]


def _down(angle: float) -> np.ndarray:
    """A hand that points down, its fingers closing along this direction; turned at most a quarter from home."""
    c, s = np.cos(angle % np.pi), np.sin(angle % np.pi)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def _rotation_vector(turn: np.ndarray) -> np.ndarray:
    """Axis times angle of a rotation matrix."""
    return cv2.Rodrigues(turn)[0].ravel()
