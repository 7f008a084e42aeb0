"""What the policy server adds to the policy: latency over asking it in process, at 1, 8 and 32 clients.

    python benchmarks/policy_server.py

A policy of LIBERO's size (two cameras of 64 pixels, random weights) is asked in process, then over `/v1/act` and over
openpi's websocket by clients in a process of their own, each of which asks again as soon as it has its answer. So at 8
and 32 clients the table shows a server that is always full: its latency is the queue's, its throughput what to read.
The policy has one thread everywhere, and is asked in process before and after the rest: what else runs here is in both.
The processor's time an answer costs is the figure that a busy machine hardly changes.
"""

import argparse
import base64
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

SIDE = 64
CLIENTS = (1, 8, 32)


def quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def make_policy(out: Path) -> Path:
    import torch

    from wovr_core.artifacts import Kind, writing
    from wovr_core.policy.tiny_vla import Shape, TinyVLA
    from wovr_core.settings import TaskSettings
    from wovr_core.store.policies import save_policy

    task = TaskSettings.model_validate({"environment": "libero", "image_size": SIDE})
    torch.manual_seed(0)
    shape = Shape(
        vocabulary=("bowl", "put", "the"), words=4, image_size=SIDE, cameras=2, action_dim=7, kernel=5, pose_dim=7
    )
    with writing(out, Kind.POLICY, settings={"task": task.model_dump()}) as draft:
        save_policy(draft.folder, TinyVLA(shape))
    return out


def in_process(path: Path, seconds: float) -> list[float]:
    """Milliseconds of each call, one observation at a time."""
    import torch

    from wovr_core.store.policies import open_policy
    from wovr_core.trajectory import Observation

    policy, generator = open_policy(path), torch.Generator()
    frames = torch.zeros(1, 3, SIDE, 2 * SIDE, dtype=torch.uint8)
    observation = Observation(frames=frames, instructions=("put the bowl",), pose=torch.zeros(1, 7))
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        begin = time.perf_counter()
        policy.act(observation, temperature=0, generator=generator)
        took.append(1000 * (time.perf_counter() - begin))
    return took[5:]


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(2)]


def ask_v1(port: int, until: float, took: list[float]) -> None:
    images = {
        name: {"encoding": "raw", "data": base64.b64encode(picture.tobytes()).decode(), "shape": picture.shape}
        for name, picture in zip(("agentview", "robot0_eye_in_hand"), pictures(), strict=True)
    }
    body = json.dumps({"instruction": "put the bowl", "images": images, "pose": [0.0] * 7})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while time.monotonic() < until:
        begin = time.perf_counter()
        connection.request("POST", "/v1/act", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        took.append(1000 * (time.perf_counter() - begin))


def ask_openpi(port: int, until: float, took: list[float]) -> None:
    from websockets.sync.client import connect

    from components.serving.policy.codec import pack

    first, second = pictures()
    body = pack({"observation/image": first, "wrist_image": second, "state": np.zeros(7), "prompt": "put the bowl"})
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as socket:
        socket.recv()
        while time.monotonic() < until:
            begin = time.perf_counter()
            socket.send(body)
            assert isinstance(socket.recv(), bytes)
            took.append(1000 * (time.perf_counter() - begin))


ASK = {"/v1/act": ask_v1, "openpi": ask_openpi}


def as_clients(protocol: str, port: int, clients: int, seconds: float) -> None:
    """The process of the clients: prints every latency."""
    took: list[list[float]] = [[] for _ in range(clients)]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=ASK[protocol], args=(port, until, one)) for one in took]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([value for one in took for value in one[1:]]))


def measure(protocol: str, port: int, clients: int, seconds: float) -> list[float]:
    command = [sys.executable, __file__, "--clients", str(clients), "--port", str(port)]
    command += ["--protocol", protocol, "--seconds", str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def processor(pid: int | str = "self") -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    parser.add_argument("--port", type=int, default=18640)
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--protocol", choices=ASK, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.clients:
        as_clients(options.protocol, options.port, options.clients, options.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(Path(folder) / "policy")
        begin = processor()
        alone = in_process(policy, options.seconds)
        alone_cost = processor() - begin
        command = [sys.executable, "-m", "pipelines", "serve-policy", str(policy), "--port", str(options.port)]
        server = subprocess.Popen(
            [*command, "--state", f"{folder}/state"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(options.port)
            rows = {}
            for protocol, clients in product(ASK, CLIENTS):
                begin = processor(server.pid)
                took = measure(protocol, options.port, clients, options.seconds)
                rows[protocol, clients] = took, processor(server.pid) - begin
        finally:
            server.terminate()
            server.wait()
        begin = processor()
        alone += in_process(policy, options.seconds)
        alone_cost += processor() - begin
    base, tail = median(alone), quantile(alone, 0.99)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.seconds:g} s a row")
    print(
        "| asked by | clients | answers a second | p50, ms | p99, ms | p50 over the policy's, ms | processor, ms each |"
    )
    print("|---|---|---|---|---|---|---|")
    rate, cost = len(alone) / options.seconds / 2, 1000 * alone_cost / len(alone)
    print(f"| in process | 1 | {rate:.0f} | {base:.2f} | {tail:.2f} | 0 | {cost:.2f} |")
    for (protocol, clients), (took, used) in rows.items():
        p50, p99 = median(took), quantile(took, 0.99)
        rate, cost = len(took) / options.seconds, 1000 * used / len(took)
        print(f"| {protocol} | {clients} | {rate:.0f} | {p50:.2f} | {p99:.2f} | {p50 - base:+.2f} | {cost:.2f} |")


if __name__ == "__main__":
    main()
