"""The cameras of the simulated cell: a process that renders the scene as it stands whenever it is asked.

A request is a line of JSON, {"camera": name}; the answer a line {"height", "width", "sequence", "time"} and then
height x width x 3 bytes, red, green and blue. Any number of clients may ask; one thread draws for all. Pictures carry a
little noise, as a real sensor's do. $MUJOCO_GL says how MuJoCo renders: egl unless it is set.
"""

import itertools
import json
import os
import queue
import socketserver
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np

NOISE = 2  # largest change of a value by noise


def serve_cameras(xml: str, scene: Any, time: Any, frozen: Any, port: Any, size: int) -> None:
    """Answer until the process ends. `scene` holds qpos, `time` robot seconds, `frozen` a flag; all shared memory."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ["LP_NUM_THREADS"] = "0"  # where a CPU draws: no threads of the renderer's own
    import mujoco

    model = mujoco.MjModel.from_xml_string(xml)
    model.light_castshadow[:] = 0
    data, renderer, rng = mujoco.MjData(model), mujoco.Renderer(model, size, size), np.random.default_rng(0)
    held: dict[str, np.ndarray] = {}
    asked: queue.Queue[tuple[str, Future]] = queue.Queue()

    def picture(camera: str) -> np.ndarray:
        if frozen.value and camera in held:
            return held[camera]
        with scene.get_lock():
            data.qpos[:] = np.frombuffer(scene.get_obj())
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        renderer.update_scene(data, camera=camera)
        noise = rng.integers(-NOISE, NOISE + 1, (size, size, 3))
        held[camera] = np.clip(renderer.render().astype(np.int16) + noise, 0, 255).astype(np.uint8)
        return held[camera]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                answer: Future = Future()
                asked.put((json.loads(line)["camera"], answer))
                image, sequence = answer.result()
                header = {"height": size, "width": size, "sequence": sequence, "time": time.value}
                self.wfile.write(json.dumps(header).encode() + b"\n" + image.tobytes())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        port.value = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for sequence in itertools.count(1):  # OpenGL draws in the thread that opened it, and in no other
            camera, answer = asked.get()
            try:
                answer.set_result((picture(camera), sequence))
            except ValueError as error:  # there is no such camera
                answer.set_exception(error)
