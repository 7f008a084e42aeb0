"""Job, policy server and gateway together: real servers, real S3, and an arm that is arithmetic.

The candidate goes forward and the baseline back. Whoever labels sees where the hand came, and no policy's name.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from components.platform.robot import try_on_robot
from tests.components.policies_served import ADMIN, BLIND, CAMERAS, SIDE, a_policy, serving
from tests.components.trials_bench import GatewayProcess, OperatorClient
from tests.components.trials_process import JOB
from wovr_core.artifacts import Manifest
from wovr_core.settings import FrankaSettings, PromoteSettings, TaskSettings
from wovr_core.steps.evaluate import judge

FORWARD, BACK, HOME = 8, 6, 0.5  # the bin of the first motion; where trials begin, m
TASK = TaskSettings.model_validate({"environment": "libero", "image_size": SIDE, "horizon": 16})


def operate(gateway: GatewayProcess, succeeded: Callable[[GatewayProcess, int], bool], failed: list) -> None:
    """A person at the page, from the plan to the end of the trials."""
    try:
        operator = OperatorClient(gateway)
        operator.until("asked", seconds=300)
        while (view := operator.look())["phase"] not in ("done", "refused"):
            step = {"asked": "accept", "scene": "confirm", "ready": "arm", "label": "label"}.get(view["phase"])
            words = {"success": succeeded(gateway, view["trial"])} if step == "label" else {}
            try:
                if step:
                    operator.do(step, **words)
            except AssertionError as error:
                if "OutOfTurnError" not in str(error):  # the trials went on between look and deed: look again
                    raise
    except BaseException as error:
        failed.append(error)


def went_forward(gateway: GatewayProcess, trial: int) -> bool:
    state = requests.get(f"{gateway.url}/v1/state", headers=gateway.job, timeout=30).json()
    return state["pose"][0] > HOME


@pytest.fixture
def tried(stack, tmp_path, monkeypatch):
    """What the job makes of two policies at a gateway and a policy server, with a person who labels so."""
    stack.up(["s3"])
    services = {name: value for name, value in stack.env().items() if name.startswith("WOVR_S3")}
    for name, value in (services | {"WOVR_ROBOT_KEY": JOB, "WOVR_POLICY_ADMIN_KEY": ADMIN}).items():
        monkeypatch.setenv(name, value)
    gateway = GatewayProcess(tmp_path, rate=20.0, cameras=CAMERAS, policy_key=BLIND)
    gateway.start()

    def run(candidate: Path, baseline: Path, succeeded: Callable[[GatewayProcess, int], bool], **settings) -> Manifest:
        failed: list[BaseException] = []
        person = threading.Thread(target=operate, args=(gateway, succeeded, failed), daemon=True)
        person.start()
        with serving(baseline, state=tmp_path / "state", env=services) as server:
            cfg = FrankaSettings(gateway=gateway.url, policy_server=server.url, episodes=20, **settings)
            made = try_on_robot(cfg, candidate=candidate, baseline=baseline, out=tmp_path / "evaluation", every=0.2)
        person.join(60)
        assert failed == []
        return made

    yield run
    gateway.kill()


@pytest.mark.slow
def test_the_better_policy_wins_through_policy_server_and_gateway(tried, tmp_path):
    candidate, baseline = (
        a_policy(tmp_path / role, mark=mark, task=TASK) for role, mark in (("candidate", FORWARD), ("baseline", BACK))
    )
    facts = tried(candidate, baseline, went_forward, control_every=4).summary["robot"]
    assert (facts["decision"], facts["gained"], facts["lost"], facts["pairs"]) == ("better", 9, 0, 9)
    assert facts["invalid"] == {}
    assert facts["controls"] == [[False, False]] * 2
    verdict = judge(PromoteSettings(), evaluation=tmp_path / "evaluation", out=tmp_path / "verdict")
    assert verdict.summary["promote"]


@pytest.mark.slow
@pytest.mark.long
def test_two_equal_policies_stop_for_futility(tried, tmp_path):
    """Both fulfil every second scene: what one does there, the other does, too."""
    alike = [
        a_policy(tmp_path / name, mark=FORWARD, seed=seed, task=TASK) for seed, name in enumerate(("one", "other"))
    ]
    facts = tried(*alike, lambda _, trial: trial // 2 % 2 == 0, control_every=0, smallest_gain=0.5).summary["robot"]
    assert (facts["decision"], facts["gained"], facts["lost"], facts["pairs"]) == ("futile", 0, 0, 6)
    assert "a gain of 50 points is not there" in facts["reason"]
    verdict = judge(PromoteSettings(), evaluation=tmp_path / "evaluation", out=tmp_path / "verdict")
    assert not verdict.summary["promote"]
