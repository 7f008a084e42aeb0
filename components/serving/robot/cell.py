"""A simulated Franka cell in a process of its own: arm, table, cube, cameras, and faults on demand.

    python -m components.serving.robot.cell            # prints {"host": "127.x.y.z", "control": port, "cameras": port}

The arm speaks libfranka's own protocol at `host` (franky-sim, MuJoCo). `control` takes lines of JSON, one answer each:

    {"do": "state"}                          where the tool is and has been, the cube, the mode
    {"do": "reset", "x": 0.5, "y": 0.0}      the cube there, the arm at its first pose, no fault left
    {"do": "fault", "kind": "reflex" | "joint_limit" | "workspace"}     a reflex now
    {"do": "fault", "kind": "user_stop" | "camera", "on": true}         pressed or let go; frozen or live
    {"do": "fault", "kind": "freeze", "seconds": 1.0}                   nothing is answered
    {"do": "fault", "kind": "drop"}                                     the connection of the arm is cut
    {"do": "fault", "kind": "gripper"}                                  its next command fails

`moved_at` and `fault_at` are robot time, in seconds. It needs the extra `franka-sim` (franky-sim, mujoco).
"""

import argparse
import json
import multiprocessing
import os
import queue
import socketserver
import sys
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import Future
from typing import Any

import numpy as np

CUBE = 0.02  # m, half an edge
TABLE = 0.02  # m above the base, the table's top
EVERY = 20  # ms of robot time between two looks of the cameras at the scene


def build_scene(sim: Any) -> None:
    """Table, cube and two cameras, added to the simulator's scene before it starts."""
    for quality in sim.scene.iter("quality"):
        quality.set("shadowsize", "0")
        quality.set("offsamples", "0")
    world = sim.worldbody
    ET.SubElement(world, "geom", name="table", type="box", size="0.4 0.5 0.02", pos="0.5 0 0", rgba="0.6 0.5 0.4 1")
    cube = ET.SubElement(world, "body", name="cube", pos=f"0.5 0 {TABLE + CUBE}")
    ET.SubElement(cube, "freejoint", name="cube_joint")
    shape = {"type": "box", "size": f"0.018 0.018 {CUBE}", "rgba": "0.9 0.8 0.1 1"}
    ET.SubElement(cube, "geom", shape, name="cube", mass="0.05", friction="2 0.05 0.001", condim="4")
    ET.SubElement(world, "camera", name="agentview", pos="1.5 0 0.75", xyaxes="0 1 0 -0.37 0 0.93", fovy="52")
    for body in world.iter("body"):
        if body.get("name", "").endswith("hand"):  # looks along the fingers
            ET.SubElement(body, "camera", name="wrist", pos="0.06 0 0.02", xyaxes="0 1 0 1 0 0", fovy="75")


class Cell:
    """The simulator, its server and what can be asked of them; all of it on one thread."""

    def __init__(self, sim: Any, server: Any, frozen: Any) -> None:
        self.sim, self.server, self.arm, self.frozen = sim, server, server.robot_servers[0], frozen
        self.fault_at = 0.0
        joint = sim.model.joint("cube_joint")
        self.place, self.motion = joint.qposadr[0], joint.dofadr[0]

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        match asked:
            case {"do": "state"}:
                return self.state()
            case {"do": "reset", "x": float() | int(), "y": float() | int()}:
                self.reset(float(asked["x"]), float(asked["y"]))
            case {"do": "fault", "kind": str(kind)}:
                self.fault_at = self.arm.log.time
                self.hurt(kind, asked)
            case _:
                raise ValueError(f"{asked} is nothing that a cell does")
        return {"done": True, "time": self.arm.log.time}

    def state(self) -> dict[str, Any]:
        arm = self.arm
        mode = arm.robot_state.robot_mode.name.removeprefix("k")
        cube = self.sim.data.body("cube").xpos.round(5).tolist()
        more = {"width": arm.robot.hand_width, "connected": arm.udp_connected, "fault_at": self.fault_at}
        return {"mode": mode, "cube": cube} | more | arm.log.summary()

    def reset(self, x: float, y: float) -> None:
        data = self.sim.data
        data.qpos[self.place : self.place + 7] = [x, y, TABLE + CUBE, 1, 0, 0, 0]
        data.qvel[self.motion : self.motion + 6] = 0
        self.arm.errors, self.arm.user_stop, self.frozen.value = None, False, False
        self.arm.gripper_server.fails = False
        self.arm.put_home()

    def hurt(self, kind: str, asked: dict[str, Any]) -> None:
        if kind in ("reflex", "joint_limit", "workspace"):
            self.arm.trip(kind)
        elif kind == "user_stop":
            self.arm.press_user_stop(asked["on"])
        elif kind == "camera":
            self.frozen.value = asked["on"]
        elif kind == "freeze":
            time.sleep(asked["seconds"])
        elif kind == "drop":
            self.arm.drop()
        elif kind == "gripper":
            self.arm.gripper_server.fails = True
        else:
            raise ValueError(f"{kind!r} is no fault that a cell knows")

    def tick(self) -> None:
        self.arm.process_commands()
        self.sim.step()
        self.arm.send_state()


def serve_cell(hostnames: list[str], *, size: int, until: threading.Event) -> None:
    """Run the cell, at the pace of the clock or slower, until the event."""
    import franky_sim.mujoco_simulator as simulator

    from components.serving.robot.cell_cameras import serve_cameras
    from components.serving.robot.cell_robot import CellRobot, CellServer

    simulator.FrankaMujocoRobot = CellRobot
    asked: queue.Queue[tuple[dict[str, Any], Future]] = queue.Queue()
    with simulator.MujocoSimulator() as sim:
        sim.add_robot()
        build_scene(sim)
        with CellServer(sim, hostname_candidates=hostnames) as server:
            context = multiprocessing.get_context("spawn")
            scene, clock = context.Array("d", sim.model.nq), context.Value("d", 0.0)
            frozen, port = context.Value("b", False), context.Value("i", 0)
            np.frombuffer(scene.get_obj())[:] = sim.data.qpos
            xml = ET.tostring(sim.scene, encoding="unicode")
            cameras = context.Process(target=serve_cameras, args=(xml, scene, clock, frozen, port, size), daemon=True)
            cameras.start()
            while not port.value and cameras.is_alive():
                time.sleep(0.05)
            if not port.value:
                raise SystemExit("the cameras of the cell did not start: does $MUJOCO_GL name a renderer that works?")
            control = _listen(asked)
            ready = {"host": server.robot_servers[0].hostname, "control": control, "cameras": port.value}
            print(json.dumps(ready), flush=True)
            try:
                _run(Cell(sim, server, frozen), asked, scene, clock, until)
            finally:
                cameras.terminate()


def _run(cell: Cell, asked: queue.Queue, scene: Any, clock: Any, until: threading.Event) -> None:
    start, tick = time.monotonic(), 0
    while not until.is_set():
        cell.tick()
        tick += 1
        if tick % EVERY == 0:
            clock.value = cell.arm.log.time
            with scene.get_lock():
                np.frombuffer(scene.get_obj())[:] = cell.sim.data.qpos
        ahead = start + tick / 1000 - time.monotonic()
        if ahead > 0.002:
            time.sleep(ahead)
        elif ahead < 0:
            start -= ahead  # never hurries to catch up
        while not asked.empty():
            question, answer = asked.get()
            try:
                answer.set_result(cell.answer(question))
            except (ValueError, KeyError, TypeError) as error:
                answer.set_result({"error": str(error)})


def _listen(asked: queue.Queue) -> int:
    """The port at which lines of JSON are taken, and answered by the thread that simulates."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                answer: Future = Future()
                asked.put((json.loads(line), answer))
                self.wfile.write(json.dumps(answer.result()).encode() + b"\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="A simulated Franka cell on libfranka's protocol.")
    parser.add_argument("--host", help="an address of this machine, 127.x.y.z; one that is free by default")
    parser.add_argument("--size", type=int, default=128, help="pixels of a picture's edge")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started this one")
    options = parser.parse_args()
    until, pid = threading.Event(), os.getpid()
    if options.until_stdin_closes:
        threading.Thread(target=lambda: (sys.stdin.read(), until.set()), daemon=True).start()
    hosts = [options.host] if options.host else [f"127.{1 + pid // 250 % 250}.{pid % 250}.{i}" for i in range(1, 250)]
    serve_cell(hosts, size=options.size, until=until)


if __name__ == "__main__":
    main()
