"""LIBERO opens and lists its tasks, and MuJoCo steps and renders one of its scenes, without a display."""

import os
import sys

import numpy as np
from libero.libero import benchmark, get_libero_path
from libero.libero.envs import OffScreenRenderEnv

suite = benchmark.get_benchmark_dict()["libero_object"]()
task = suite.get_task(0)
scene = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
env = OffScreenRenderEnv(bddl_file_name=scene, camera_heights=128, camera_widths=128)
env.reset()
seen, *_ = env.step(np.zeros(7))
frame = seen["agentview_image"]
env.close()
assert frame.shape == (128, 128, 3) and frame.std() > 10, "the camera sees nothing"
print(f"libero_object has {suite.n_tasks} tasks; {task.language!r} rendered with {os.environ['MUJOCO_GL']}")
sys.stdout.flush()
os._exit(0)  # OSMesa's own end is not always a clean one
