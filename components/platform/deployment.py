"""Putting a learned simulator into service on a Triton server, as a version of its own."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from components.platform.storage import Storage
from components.platform.triton import LOADING, ServedSimulator, ServingError, connect, words_of
from components.serving.dreams import Served, code_that_dreams
from components.serving.wire import MODEL, config
from wovr_core.artifacts import Kind, read_manifest
from wovr_core.protocols import Readout, Simulator
from wovr_core.settings import ServeSettings
from wovr_core.trajectory import InitState
from wovr_core.world_model.statistics import ActionStatistics

SOON_ENOUGH = 10.0  # seconds for an answer about how it is
IDLE = 3600.0  # seconds after which nobody is thought to ask an old version any more
MODEL_FILE = "from components.serving.dreams import TritonPythonModel  # noqa: F401\n"


def deploy(cfg: ServeSettings, *, url: str, repository: Path, world_model: Path, reward: Path) -> str:
    """Serve these two artifacts as a version of their own, and return its name.

    A version is named by what it is made from, code included, and what is served already is left alone. A new one is
    published (where its artifacts lie, not their weights), loaded beside the others, and has to answer a known dream
    as this process does, before anyone is told its name; if it fails it is withdrawn. All but the newest `keep` are
    unloaded, unless somebody asked them within the hour: other runs deploy, too. Each version is a model of Triton's
    own, for Triton loads all versions of a model again when one is added. All that holds of every replica that the
    address names.
    """
    served = digests(world_model, reward) | {"code": code_that_dreams()}
    name = f"{MODEL}-{sha256(json.dumps(served).encode()).hexdigest()[:12]}"
    servers = {replica: connect(replica) for replica in replicas(url)}
    for replica, connection in servers.items():
        _refuse_dead(connection, replica)
    new = name not in versions(repository)
    addresses = {"world_model": _address(world_model, "world_model"), "reward": _address(reward, "reward")}
    changed = _publish(cfg, repository / name, Served(**served, addresses=addresses))

    def load(connection: grpc.InferenceServerClient) -> None:
        if changed or not connection.is_model_ready(name, client_timeout=SOON_ENOUGH):
            # returns when it is loaded; versions that are loaded serve on meanwhile
            connection.load_model(name, client_timeout=LOADING)

    try:
        with ThreadPoolExecutor(len(servers)) as side_by_side:
            list(side_by_side.map(load, servers.values()))
        for replica in servers:
            _check(cfg, replica, name, world_model, reward)
    except BaseException as error:
        if new:
            _withdraw(servers.values(), repository / name)
        if not isinstance(error, InferenceServerException | RuntimeError):
            raise
        raise ServingError(
            f"{name} was withdrawn, what was served before still is: {words_of(error)}"
            if new
            else f"{name} does not serve any more: {words_of(error)}"
        ) from error
    for old in versions(repository)[: -cfg.keep]:
        if min(_idle(connection, old) for connection in servers.values()) > IDLE:
            _withdraw(servers.values(), repository / old)
    return name


def replicas(url: str) -> list[str]:
    """The servers that an address HOST:PORT names: several where the host is a headless Service of Kubernetes."""
    host, _, port = url.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return [url]  # whoever connects is told
    kinds = {family for family, *_ in found}
    chosen = socket.AF_INET if socket.AF_INET in kinds else socket.AF_INET6  # localhost is one server, and has both
    hosts = sorted({str(address[0]) for family, *_, address in found if family == chosen})
    if len(hosts) == 1:
        return [url]
    return [f"{host}:{port}" if chosen == socket.AF_INET else f"[{host}]:{port}" for host in hosts]


def digests(world_model: Path, reward: Path) -> dict[str, str]:
    """What a version is made from."""
    return {
        "world_model": read_manifest(world_model, Kind.WORLD_MODEL).digest,
        "reward": read_manifest(reward, Kind.REWARD_MODEL).digest,
    }


def versions(repository: Path) -> list[str]:
    """The versions that lie in a model repository, the one put into service last at the end."""
    found = []
    for file in repository.glob(f"{MODEL}-*/1/served.json"):
        with suppress(FileNotFoundError):  # withdrawn meanwhile
            found.append((file.stat().st_mtime_ns, file.parents[1].name))
    return [name for _, name in sorted(found)]


def _idle(connection: grpc.InferenceServerClient, version: str) -> float:
    """Seconds since a version was asked last; infinite for one that is not loaded."""
    try:
        statistics = connection.get_inference_statistics(version, as_json=True, client_timeout=SOON_ENOUGH)
    except InferenceServerException:
        return float("inf")
    return time.time() - int(statistics["model_stats"][0].get("last_inference", 0)) / 1000


def _refuse_dead(connection: grpc.InferenceServerClient, url: str) -> None:
    try:
        ready = connection.is_server_ready(client_timeout=SOON_ENOUGH)
    except InferenceServerException as error:
        raise ServingError(
            f"no Triton server answers at {url} ({words_of(error)}): `wovr stack up` starts one on this machine"
        ) from error
    if not ready:
        raise ServingError(f"the Triton server at {url} is not ready: see its log (`wovr stack status` names it)")


def _address(artifact: Path, port: str) -> str:
    """Where Triton finds an artifact: in the bucket, if there is one, else in this folder, which it has to see, too."""
    if os.environ.get("WOVR_S3_ENDPOINT"):
        return Storage.from_env().put_once(artifact, f"inputs/{port}")
    return str(artifact.resolve())


def _publish(cfg: ServeSettings, place: Path, served: Served) -> bool:
    """Into the repository, all at once, for Triton must never see half a version; whether it must be loaded again."""
    text, file = config(place.name, instances=cfg.instances), place / "config.pbtxt"
    if (place / "1" / "served.json").exists():
        _replace(place / "1" / "served.json", served.model_dump_json())  # the newest again; perhaps it has moved
        if file.read_text() == text:
            return False
        _replace(file, text)
        return True
    draft = place.with_name(f".{place.name}-{uuid4().hex}.writing")
    try:
        (draft / "1").mkdir(parents=True)
        (draft / "1" / "model.py").write_text(MODEL_FILE)
        (draft / "1" / "served.json").write_text(served.model_dump_json())
        (draft / file.name).write_text(text)
        if not place.exists():  # another deployment of the same may have been faster
            os.rename(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _replace(file: Path, text: str) -> None:
    beside = file.with_name(f".{file.name}-{uuid4().hex}.writing")
    beside.write_text(text)
    os.replace(beside, file)


def _withdraw(connections: Iterable[grpc.InferenceServerClient], place: Path) -> None:
    """What it has begun to answer it still answers."""
    for connection in connections:
        with suppress(InferenceServerException):
            connection.unload_model(place.name, client_timeout=LOADING)
    shutil.rmtree(place, ignore_errors=True)  # another deployment may be at it, too


def _check(cfg: ServeSettings, url: str, name: str, world_model: Path, reward: Path) -> None:
    """Does it answer a known dream as this process does?"""
    from wovr_core.store.world_models import open_simulator

    detector = (reward / "detector.safetensors").exists()
    simulator = ServedSimulator(url, name, detector=detector, patience=30)
    here = open_simulator(world_model, reward, detector=detector)
    shape = here.reward.shape
    words = " ".join(shape.vocabulary[: shape.words])
    starts = known_starts(here.world_model.statistics, shape.image_size, shape.cameras, words)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected, got = known_dream(here, starts), known_dream(simulator, starts)
    finally:
        torch.set_num_threads(threads)
    for name, value in expected.items():
        off = (got[name].float() - value.float()).abs().max().item()
        if not off <= cfg.tolerance * (255 if name == "frames" else 1):
            raise ServingError(
                f"it answers a known dream otherwise than this process: {name} differs by up to {off:.3g}. Another "
                f"machine or library? If so, serve.tolerance says how much is well"
            )


def known_starts(
    statistics: ActionStatistics, image_size: int, cameras: int, instruction: str, n: int = 64
) -> list[InitState]:
    """Made-up moments, always the same; as many as a rollout's batch has, for the last bits depend on that."""
    g = torch.Generator().manual_seed(0)
    blots = torch.randint(0, 256, (n, 5, 3, 4, 4 * cameras), generator=g, dtype=torch.uint8)
    side, action_dim, pose_dim = -(-image_size // 4), len(statistics.q01), len(statistics.reach)
    frames = blots.repeat_interleave(side, -1).repeat_interleave(side, -2)[..., :image_size, : image_size * cameras]
    return [
        InitState(
            instruction=instruction,
            reference=f[0],
            memory=f[1:],
            actions=torch.rand(4, action_dim, generator=g),
            pose=statistics.pose_of(torch.rand(5, pose_dim, generator=g)),
            steps_left=16,
            episode=0,
            step=0,
            rule="initial",
        )
        for f in frames
    ]


def known_dream(simulator: Simulator, starts: Sequence[InitState]) -> dict[str, Tensor]:
    """Two chunks of each, with fixed actions: what is seen, and what the judges say."""
    g = torch.Generator().manual_seed(0)
    state, readouts = simulator.begin(starts), list[Readout]()
    for _ in range(2):
        actions = 2 * torch.rand(len(starts), 8, starts[0].actions.shape[-1], generator=g) - 1
        state, readout = simulator.imagine(state, actions, starts=starts, frames=[1, 7], generator=g)
        readouts.append(readout)
    parts = {name: [getattr(readout, name) for readout in readouts] for name in ("frames", "success", "score")}
    return {name: torch.stack(values) for name, values in parts.items() if values[0] is not None} | {
        "memory": state.memory
    }
