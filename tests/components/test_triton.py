"""Dreams from a real Triton server: the same bits, one version after another, and what happens when it is away."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tritonclient.utils import InferenceServerException

from components.platform import deployment, triton
from components.platform.deployment import deploy, known_dream, known_starts, versions
from components.platform.endpoint import serve_dreams, simulator_at
from components.platform.storage import Storage
from components.platform.triton import ServedSimulator, ServingError, connect
from pipelines.stack.stack import Stack
from tests.steps.conftest import SHAPE, TASK, WORLD_MODEL, collection
from tests.toys import RULE, SIDE
from wovr_core.architecture import NextFrameSettings
from wovr_core.artifacts import Kind, save_table, writing
from wovr_core.imagination.rollout import Rollouts, dream
from wovr_core.imagination.simulator import LearnedSimulator
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.protocols import Readout, Simulator
from wovr_core.reward.classifier import SuccessClassifier
from wovr_core.reward.detector import FrameErrorClassifier
from wovr_core.settings import GrpoSettings, RewardSettings, ServeSettings, TaskSettings
from wovr_core.steps.grpo import improve_policy
from wovr_core.store.policies import save_policy
from wovr_core.store.rewards import save_detector, save_reward
from wovr_core.store.world_models import new_world_model, open_simulator, save_world_model
from wovr_core.training.loop import TrainingError
from wovr_core.trajectory import InitState
from wovr_core.world_model.model import DiffusionWorldModel
from wovr_core.world_model.statistics import ActionStatistics

CHECKOUT = Path(__file__).parents[2]
ONE = ServeSettings(instances=1)
COLUMNS = ("frames", "pose", "choices", "log_prob", "valid", "success", "hallucinated", "broken")


@pytest.fixture(autouse=True)
def served(stack, monkeypatch, tmp_path) -> Path:
    """The model repository of a server that is up, and where clients find the server."""
    stack.up(["triton"])
    for name in ("WOVR_TRITON_URL", "WOVR_TRITON_REPOSITORY"):
        monkeypatch.setenv(name, stack.env()[name])
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "scratch"))
    return Path(stack.env()["WOVR_TRITON_REPOSITORY"])


@pytest.fixture(scope="module")
def minds(tmp_path_factory) -> Callable[[int], dict[str, Path]]:
    """World model and reward by number: small and never trained, but each with vivid dreams of its own."""
    folder = tmp_path_factory.mktemp("minds")

    def mind(seed: int) -> dict[str, Path]:
        world_model, reward = folder / f"world_model-{seed}", folder / f"reward-{seed}"
        if not reward.exists():
            torch.manual_seed(seed)
            wild = (
                new_world_model(WORLD_MODEL, TASK),
                SuccessClassifier(SHAPE, success_rule=RULE),
                FrameErrorClassifier(threshold=2),
            )
            for parameter in (p for model in wild[:2] for p in model.parameters()):
                parameter.data += 0.2 * torch.randn_like(parameter)
            with_thresholds(*wild)
            with writing(world_model, Kind.WORLD_MODEL, settings={"seed": seed}) as draft:
                save_world_model(draft.folder, wild[0])
            with writing(reward, Kind.REWARD_MODEL, settings={"reward": RewardSettings().model_dump()}) as draft:
                save_reward(draft.folder, wild[1])
                save_detector(draft.folder, wild[2])
        return {"world_model": world_model, "reward": reward}

    return mind


def with_thresholds(world: DiffusionWorldModel, reward: SuccessClassifier, detector: FrameErrorClassifier) -> None:
    """Thresholds at which some dreams succeed, some are not believed, and others go on."""
    readouts: list[Readout] = []

    class Watched(LearnedSimulator):
        def imagine(self, *args, **kwargs):
            state, readout = super().imagine(*args, **kwargs)
            readouts.append(readout)
            return state, readout

    reward.success_rule = replace(RULE, threshold=2.0)
    dreams_in(Watched(world, reward, detector))
    threshold = torch.cat([readout.success.flatten() for readout in readouts]).quantile(0.5).item()
    reward.success_rule = replace(RULE, threshold=threshold)
    detector.threshold = torch.cat([readout.score.flatten() for readout in readouts]).quantile(0.9).item()


def put(stack: Stack, parts: dict[str, Path], cfg: ServeSettings = ONE) -> str:
    env = stack.env()
    return deploy(cfg, url=env["WOVR_TRITON_URL"], repository=Path(env["WOVR_TRITON_REPOSITORY"]), **parts)


def client(stack: Stack, version: str, **kwargs) -> ServedSimulator:
    return ServedSimulator(stack.env()["WOVR_TRITON_URL"], version, **kwargs)


def starts() -> list[InitState]:
    return known_starts(ActionStatistics(3, 2), SIDE, 1, "put the red block on the green pad", n=2) * 6


@cache
def a_policy() -> TinyVLA:
    torch.manual_seed(0)
    return TinyVLA(SHAPE)


def dreams_in(simulator: Simulator, batch: int = 5) -> Rollouts:
    return dream(
        a_policy(), simulator, starts(), temperature=1.0, generator=torch.Generator().manual_seed(0), batch=batch
    )


def same(one: Rollouts, other: Rollouts) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


def test_a_served_dream_is_the_dream_of_this_process_bit_for_bit(stack, minds):
    parts = minds(1)
    version = put(stack, parts, ServeSettings(instances=2))
    for detector in (True, False):
        here = dreams_in(open_simulator(**parts, detector=detector))
        assert same(dreams_in(client(stack, version, detector=detector)), here)
        assert here.hallucinated.any() == detector and 0 < here.success.sum() < len(here), "the judges have a say"
    assert not same(dreams_in(open_simulator(**minds(2))), here), "another world dreams otherwise"


def test_a_version_holds_addresses_and_its_weights_come_from_the_bucket_once_a_machine(
    stack, minds, served, monkeypatch, tmp_path
):
    for name, value in stack.env().items():
        monkeypatch.setenv(name, value)
    parts = minds(31)
    where = Storage.from_env().put(parts["world_model"], "runs/one/train-world-model/fitted")
    version = put(stack, parts, ServeSettings(instances=2))
    published = json.loads((served / version / "1" / "served.json").read_text())
    assert published["addresses"]["world_model"] == where, "where it lies already"
    assert published["addresses"]["reward"] == f"s3://wovr/inputs/reward/{published['reward']}"
    assert sum(file.stat().st_size for file in (served / version).rglob("*") if file.is_file()) < 10_000
    assert same(dreams_in(client(stack, version)), dreams_in(open_simulator(**parts)))
    copies = stack.folder / "scratch" / "served"
    assert {published["world_model"], published["reward"]} <= {path.name for path in copies.iterdir()}
    monkeypatch.delenv("WOVR_S3_ENDPOINT")
    assert put(stack, parts, ServeSettings(instances=2)) == version
    published = json.loads((served / version / "1" / "served.json").read_text())
    assert published["addresses"] == {name: str(path) for name, path in parts.items()}, "it has moved"


def test_what_dreams_inside_triton_imports_nothing_that_its_environment_lacks():
    said = subprocess.run(
        [sys.executable, "-c", "import sys, components.serving.dreams; print(*sys.modules)"],
        cwd=CHECKOUT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.split()
    assert {"tenacity", "mlflow", "kfp", "minio", "dotenv", "typer", "kubernetes"}.isdisjoint(said)


def test_a_model_of_another_arm_is_served_as_well(stack, tmp_path):
    """Two cameras, poses and actions of seven numbers, as LIBERO's; nothing of LIBERO is installed."""
    task = TaskSettings(environment="libero", image_size=SIDE)
    torch.manual_seed(0)
    small = NextFrameSettings(network="next-frame", width=8, layers=1, condition=32)
    world = new_world_model(WORLD_MODEL.model_copy(update={"architecture": small}), task)
    shape = SHAPE.model_copy(update={"action_dim": 7, "cameras": 2})
    for parameter in world.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    world.statistics.pose_low.copy_(torch.linspace(-1, 0, 7))
    with writing(tmp_path / "world_model", Kind.WORLD_MODEL, settings={"task": task.model_dump()}) as draft:
        save_world_model(draft.folder, world)
    with writing(tmp_path / "reward", Kind.REWARD_MODEL, settings={}) as draft:
        save_reward(draft.folder, SuccessClassifier(shape, success_rule=RULE))
    parts = {name: tmp_path / name for name in ("world_model", "reward")}
    version = put(stack, parts)
    starts = known_starts(world.statistics, SIDE, 2, "put the red block", n=3)
    here = known_dream(open_simulator(**parts, detector=False), starts)
    served = known_dream(client(stack, version, detector=False), starts)
    assert here.keys() == served.keys() and all(torch.equal(here[name], served[name]) for name in here)
    assert starts[0].pose.shape == (5, 7) and here["frames"].float().std() > 1


def test_a_video_shows_what_the_rollout_saw(stack, minds):
    simulator, generator = client(stack, put(stack, minds(1))), torch.Generator().manual_seed(0)
    state, readout = simulator.imagine(
        simulator.begin(starts()), torch.zeros(12, 8, 3), starts=starts(), frames=[1, 7], generator=generator
    )
    assert torch.equal(simulator.look(state)[:, [1, 7]], readout.frames)
    with pytest.raises(ServingError, match="ValueError: the call imagine lacks read, instruction"):
        simulator._ask("imagine", 1, {})


def test_what_is_served_keeps_its_name_and_a_new_one_comes_beside_it(stack, minds):
    first, second = put(stack, minds(1)), put(stack, minds(2))
    assert second != first
    assert (put(stack, minds(1)), put(stack, minds(2))) == (first, second)
    assert same(dreams_in(client(stack, first)), dreams_in(open_simulator(**minds(1))))
    assert same(dreams_in(client(stack, second)), dreams_in(open_simulator(**minds(2))))


def test_a_step_asks_the_version_it_was_told_and_no_other_worlds(stack, minds):
    endpoint = serve_dreams(ONE, **minds(1))
    assert endpoint == put(stack, minds(1))
    assert simulator_at(endpoint, **minds(1), detector=True) is not None
    with pytest.raises(ServingError, match="serves other artifacts than these: run the step serve again"):
        simulator_at(endpoint, **minds(2), detector=True)


def test_without_a_server_a_policy_dreams_in_its_own_process(monkeypatch, minds):
    monkeypatch.delenv("WOVR_TRITON_URL")
    endpoint = serve_dreams(ONE, **minds(1))
    assert endpoint == "" and simulator_at(endpoint, **minds(1), detector=True) is None


def test_a_version_that_cannot_be_loaded_is_withdrawn_and_the_old_one_serves_on(stack, minds, served, tmp_path):
    good = put(stack, minds(1))
    other = WORLD_MODEL.architecture.model_copy(update={"layers": 2})
    with writing(tmp_path / "broken", Kind.WORLD_MODEL, settings={}) as draft:
        save_world_model(draft.folder, new_world_model(WORLD_MODEL, TASK))
        (draft.folder / "world_model.json").write_text(
            WORLD_MODEL.model_copy(update={"architecture": other}).model_dump_json()
        )
    before = versions(served)
    with pytest.raises(ServingError, match=r"(?s)withdrawn, what was served before still is: .*do not fit the model"):
        put(stack, {**minds(1), "world_model": tmp_path / "broken"})
    assert versions(served) == before
    assert same(dreams_in(client(stack, good)), dreams_in(open_simulator(**minds(1))))


@pytest.mark.long
def test_a_version_that_dreams_otherwise_than_it_was_trained_is_withdrawn(stack, minds, served, monkeypatch):
    good, known = put(stack, minds(1)), known_dream

    def a_little_off(simulator, starts):
        told = known(simulator, starts)
        return told if isinstance(simulator, ServedSimulator) else told | {"memory": told["memory"] + 1e-4}

    monkeypatch.setattr(deployment, "known_dream", a_little_off)
    with pytest.raises(ServingError, match=r"known dream otherwise than this process: memory differs by up to 0.0001"):
        put(stack, minds(3))
    assert good in versions(served) and client(stack, good).about
    assert put(stack, minds(3), ServeSettings(instances=1, tolerance=0.01)) in versions(served), (
        "unless so much is well"
    )


@pytest.mark.long
def test_no_more_versions_than_are_kept_and_one_that_is_gone_is_told(stack, minds, served, monkeypatch):
    first = put(stack, minds(4))
    asks = client(stack, first)
    for seed in (5, 6):
        newest = put(stack, minds(seed))
    assert first in versions(served), "somebody asked it within the hour"
    for module, name in ((deployment, "IDLE"), (triton, "GONE")):
        monkeypatch.setattr(module, name, -1.0)
    assert put(stack, minds(6)) == newest
    assert len(versions(served)) == 2 and versions(served)[-1] == newest
    with pytest.raises(ServingError, match=rf"{first} is not served .* run the step `serve` again"):
        dreams_in(asks)


@pytest.mark.long
def test_deployments_at_once_do_not_disturb_each_other(stack, minds):
    parts = [minds(seed) for seed in (7, 8, 7)]
    with ThreadPoolExecutor(3) as pool:
        one, other, same_again = pool.map(lambda some: put(stack, some), parts)
    assert one == same_again != other
    for version, seed in ((one, 7), (other, 8)):
        assert same(dreams_in(client(stack, version)), dreams_in(open_simulator(**minds(seed))))


def test_a_hot_swap_under_load_fails_no_request_and_every_answer_is_of_one_version(stack, minds):
    """Dreams go on in the old version while the new one loads, then in the new one, and the old one goes."""
    expected = {seed: dreams_in(open_simulator(**minds(seed))) for seed in (1, 9)}
    current, done, told = put(stack, minds(1)), threading.Event(), []
    names = {current: 1}

    def roll_out() -> None:
        clients = {}
        while not done.is_set():
            version = current
            simulator = clients.setdefault(version, client(stack, version, patience=0))
            told.append((version, same(dreams_in(simulator), expected[names[version]])))

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(roll_out) for _ in range(2)]
        new = put(stack, minds(9), ServeSettings(instances=1, keep=2))
        meanwhile = len(told)
        names[new] = 9
        current = new
        while sum(version == new for version, _ in told) < 4:
            assert not any(caller.done() for caller in callers)
            time.sleep(0.05)
        put(stack, minds(9), ServeSettings(instances=1, keep=1))
        done.set()
    assert [caller.result() for caller in callers] == [None, None], "no request failed"
    assert meanwhile > 0 and {version for version, _ in told} == set(names)
    assert all(right for _, right in told), "an answer of another version than it was asked"
    print(f"{len(told)} batches of rollouts, {meanwhile} of them while the new version was loaded")


@pytest.fixture
def second_replica(stack, tmp_path):
    """Another Triton of the same repository and ports, at another address of this machine."""
    first = Path(f"/proc/{stack.pids('triton')[0]}")
    words, variables = (
        [word.decode() for word in (first / file).read_bytes().split(b"\0")[:-1]] for file in ("cmdline", "environ")
    )
    elsewhere = {"127.0.0.1": "127.0.0.2", "region-prefix-name=": "region-prefix-name=second-"}
    for here, there in elsewhere.items():
        words = [word.replace(here, there) for word in words]
    log = tmp_path / "second.log"
    with log.open("w") as file:
        environment = dict(variable.split("=", 1) for variable in variables)
        server = subprocess.Popen(words, env=environment, cwd=CHECKOUT, stdout=file, stderr=file)
    url = stack.env()["WOVR_TRITON_URL"].replace("127.0.0.1", "127.0.0.2")
    for _ in range(3000):  # it listens when it has loaded what earlier tests have left
        with suppress(InferenceServerException):
            if connect(url).is_server_ready():
                break
        assert server.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)
    else:
        pytest.fail(f"the second server is not ready after 300 s: {log.read_text()[-2000:]}")
    yield url
    server.terminate()
    server.wait(60)


@pytest.mark.slow
@pytest.mark.long
def test_a_version_is_loaded_on_every_replica_that_the_address_names(stack, served, minds, second_replica, monkeypatch):
    url = stack.env()["WOVR_TRITON_URL"]
    known = socket.getaddrinfo

    def both(host, *args, **kwargs):
        hosts = ["127.0.0.1", "127.0.0.2"] if host == "triton.test" else [host]
        return [found for each in hosts for found in known(each, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    version = deploy(ONE, url=f"triton.test:{url.rpartition(':')[2]}", repository=served, **minds(21))
    assert all(connect(each).is_model_ready(version) for each in (url, second_replica))
    one, other = (known_dream(ServedSimulator(each, version), starts()) for each in (url, second_replica))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def lesson(minds, tmp_path) -> Callable[..., Path]:
    """GRPO on a served world model; everything but the simulator the same each time."""
    parts = minds(1)
    with writing(tmp_path / "policy", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, a_policy())
    with writing(tmp_path / "keyframes", Kind.KEYFRAMES, settings={}) as draft:
        save_table(draft.folder, "keyframes", [{"episode": 0, "step": 8, "rule": "gripper_event", "score": 1.0}])
    episodes = collection(tmp_path / "episodes", [True, True, False, False] * 2)
    cfg = GrpoSettings(
        updates=3,
        num_groups=4,
        group_size=2,
        informative=(0, 1),
        max_draws=1,
        keyframe_horizon=8,
        epochs=1,
        max_imagined_gain=1,
    )

    def learn(name: str, simulator: Simulator | None) -> Path:
        improve_policy(
            cfg,
            TASK,
            policy=tmp_path / "policy",
            keyframes=tmp_path / "keyframes",
            episodes=[episodes],
            out=tmp_path / name,
            simulator=simulator,
            **parts,
        )
        return tmp_path / name / "policy.safetensors"

    return learn


class Interrupted:
    """A simulator to which something happens before one of its calls."""

    def __init__(self, served: ServedSimulator, at: int, happens: Callable[[], object]) -> None:
        self.served, self.at, self.happens, self.calls = served, at, happens, 0

    def __getattr__(self, name: str):
        return getattr(self.served, name)

    def imagine(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            self.happens()
        return self.served.imagine(*args, **kwargs)


@pytest.mark.long
def test_a_server_killed_in_the_middle_of_a_rollout_and_started_again_is_not_even_noticed(
    stack, minds, lesson, tmp_path, monkeypatch
):
    simulator = client(stack, put(stack, minds(1)))

    def crash() -> None:
        stack.kill("triton")
        threading.Thread(target=stack.up, args=(["triton"],)).start()

    crashes = Interrupted(simulator, 3, crash)
    served = lesson("served", crashes)
    assert crashes.calls > 3, "it went on after the crash"
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "other"))
    assert served.read_bytes() == lesson("here", None).read_bytes()


@pytest.mark.long
def test_a_server_that_is_restarted_in_the_middle_is_waited_for(stack, minds, lesson, tmp_path, monkeypatch):
    """Politely: it unloads its models before it closes, and for a moment knows nothing of the version."""
    simulator = client(stack, put(stack, minds(1)))

    def restart() -> None:
        stack.down(["triton"])
        stack.up(["triton"])

    def restarted() -> None:
        threading.Thread(target=restart).start()
        time.sleep(0.3)

    served = lesson("served", Interrupted(simulator, 3, restarted))
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path / "other"))
    assert served.read_bytes() == lesson("here", None).read_bytes()


@pytest.mark.long
def test_a_version_whose_process_died_is_loaded_again(stack, minds):
    """Triton goes on calling it ready and answers nothing."""
    simulator = client(stack, put(stack, minds(1)))
    for pid in stack.pids("triton"):
        if "triton_python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    assert same(dreams_in(simulator), dreams_in(open_simulator(**minds(1))))


@pytest.mark.long
def test_code_of_another_day_is_not_asked_for_todays_dreams(stack, minds, served, monkeypatch):
    """Triton imports the method when it loads a version; another checkout would answer something else."""
    monkeypatch.setattr(deployment, "code_that_dreams", lambda: "wovr_core of another day")
    with pytest.raises(ServingError, match=r"made for wovr_core of another day, but Triton runs wovr_core .*torch"):
        put(stack, minds(1))


@pytest.mark.long
def test_a_server_that_is_gone_for_good_ends_the_learning_and_nothing_half_learnt_is_left(
    stack, minds, lesson, tmp_path
):
    simulator = client(stack, put(stack, minds(1)), patience=2)
    with pytest.raises(ServingError, match=r"gave no answer for 2 s .*wovr stack up.* run this once more"):
        lesson("served", Interrupted(simulator, 3, lambda: stack.kill("triton")))
    assert not (tmp_path / "served").exists()
    stack.up(["triton"])
    served = lesson("served", simulator)  # goes on with what was finished
    assert served.exists()


WRONG = """
import torch
from components.serving.dreams import Server, TritonPythonModel as Honest

class TritonPythonModel(Honest):
    def initialize(self, args):
        super().initialize(args)
        imagine = self.server.imagine
        def wrong(asked):
            made = imagine(asked)
            {what}
            return made
        self.server.calls["imagine"] = wrong
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        pytest.param('made["success"][0] = float("nan")', None, marks=pytest.mark.long),
        ('made["seen"] = made["seen"][:, :1]', "4 of 4 groups of dreams were broken"),
    ],
)
def test_an_answer_that_is_no_dream_drops_its_group_and_never_reaches_the_loss(
    what, said, stack, minds, lesson, served
):
    place = served / put(stack, minds(1))
    wrong = place.with_name(f"wrong-{place.name}")
    shutil.copytree(place, wrong)
    (wrong / "1" / "model.py").write_text(WRONG.format(what=what))
    (wrong / "config.pbtxt").write_text((place / "config.pbtxt").read_text().replace(place.name, wrong.name))
    connection = connect(stack.env()["WOVR_TRITON_URL"])
    connection.load_model(wrong.name)
    try:
        if said:
            with pytest.raises(TrainingError, match=said):
                lesson("served", client(stack, wrong.name))
        else:
            policy = lesson("served", client(stack, wrong.name))
            rows = [json.loads(row) for row in (policy.parent / "history.jsonl").read_text().splitlines()]
            assert all(0 < row["groups_broken"] < 4 and row["groups_kept"] > 0 for row in rows)
            assert all(math.isfinite(row["loss"]) for row in rows)
    finally:
        connection.unload_model(wrong.name)
        shutil.rmtree(wrong)


def test_where_no_server_answers_it_is_said(minds, tmp_path):
    with pytest.raises(ServingError, match=r"no Triton server answers at 127.0.0.1:1 .*wovr stack up"):
        deploy(ONE, url="127.0.0.1:1", repository=tmp_path, **minds(1))
