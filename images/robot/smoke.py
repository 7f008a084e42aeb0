"""The gateway starts beside an arm that is arithmetic, says how it is, and stops when told. There is no torch."""

import os
import signal
import subprocess
import time
import urllib.request
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import franky
import pyrealsense2

assert find_spec("torch") is None, "torch has come along"
assert franky.RealtimeConfig.Ignore is not None and pyrealsense2.context and cv2.VideoCapture

cell, keys = Path("/tmp/cell.yaml"), {f"WOVR_ROBOT_{kind}KEY": f"{kind}-0123456789abcdef" for kind in ("", "OPERATOR_")}
cell.write_text("arm: fake\n")
command = ["wovr", "robot", "serve", str(cell), "--folder", "/tmp/trials", "--port", "8123"]
gateway = subprocess.Popen(command, env=os.environ | keys)
request = urllib.request.Request("http://127.0.0.1:8123/v1/state")
request.add_header("Authorization", f"Bearer {keys['WOVR_ROBOT_KEY']}")
answer = ""
for _ in range(300):
    try:
        answer = urllib.request.urlopen(request, timeout=5).read().decode()
        break
    except OSError:
        assert gateway.poll() is None, "the gateway ended by itself"
        time.sleep(0.2)
assert '"mode":"idle"' in answer, answer
printed = subprocess.run(
    ["wovr", "robot", "trials", "--gateway", "http://127.0.0.1:8123"],
    env=os.environ | keys,
    capture_output=True,
    text=True,
    check=True,
).stdout
assert "no trials" in printed, printed
gateway.send_signal(signal.SIGTERM)
assert gateway.wait(30) == 0
print(f"franky {version('franky-control')}, OpenCV {cv2.__version__}; the gateway answered and stopped; no torch")
