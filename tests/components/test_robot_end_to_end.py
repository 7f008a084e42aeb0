"""Job, policy server and gateway together: real servers, real S3, and an arm that is arithmetic.

The candidate goes forward and the baseline back. Whoever labels sees where the hand came, and no policy's name.
"""

import threading

import pytest
import requests

from components.platform.robot import try_on_robot
from tests.components.policies_served import ADMIN, BLIND, CAMERAS, SIDE, a_policy, serving
from tests.components.trials_bench import GatewayProcess, OperatorClient
from tests.components.trials_process import JOB
from wovr_core.settings import FrankaSettings, PromoteSettings, TaskSettings
from wovr_core.steps.evaluate import judge

FORWARD, BACK, HOME = 8, 6, 0.5  # the bin of the first motion; where trials begin, m
TASK = TaskSettings.model_validate({"environment": "libero", "image_size": SIDE, "horizon": 16})


def operate(gateway: GatewayProcess, failed: list[BaseException]) -> None:
    """A person at the page, until the trials are over."""
    try:
        operator = OperatorClient(gateway)
        while (phase := operator.look()["phase"]) not in ("done", "refused"):
            step = {"asked": "accept", "scene": "confirm", "ready": "arm", "label": "label"}.get(phase)
            if step == "label":
                state = requests.get(f"{gateway.url}/v1/state", headers=gateway.job, timeout=30).json()
                operator.do(step, success=state["pose"][0] > HOME)
            elif step:
                operator.do(step)
    except BaseException as error:
        failed.append(error)


@pytest.mark.slow
def test_the_better_policy_wins_through_policy_server_and_gateway(stack, tmp_path, monkeypatch):
    stack.up(["s3"])
    services = {name: value for name, value in stack.env().items() if name.startswith("WOVR_S3")}
    for name, value in (services | {"WOVR_ROBOT_KEY": JOB, "WOVR_POLICY_ADMIN_KEY": ADMIN}).items():
        monkeypatch.setenv(name, value)
    candidate, baseline = (
        a_policy(tmp_path / role, mark=mark, task=TASK) for role, mark in (("candidate", FORWARD), ("baseline", BACK))
    )
    gateway = GatewayProcess(tmp_path, rate=20.0, cameras=CAMERAS, policy_key=BLIND)
    gateway.start()
    failed: list[BaseException] = []
    try:
        with serving(baseline, state=tmp_path / "state", env=services) as server:
            cfg = FrankaSettings(gateway=gateway.url, policy_server=server.url, episodes=20, control_every=4)
            person = threading.Thread(target=lambda: (waits_for_a_plan(gateway), operate(gateway, failed)), daemon=True)
            person.start()
            made = try_on_robot(cfg, candidate=candidate, baseline=baseline, out=tmp_path / "evaluation", every=0.2)
            person.join(60)
    finally:
        gateway.kill()
    assert failed == []
    facts = made.summary["robot"]
    assert (facts["decision"], facts["gained"], facts["lost"], facts["pairs"]) == ("better", 9, 0, 9)
    assert facts["invalid"] == {}
    assert facts["controls"] == [[False, False]] * 2
    verdict = judge(PromoteSettings(), evaluation=tmp_path / "evaluation", out=tmp_path / "verdict")
    assert verdict.summary["promote"]


def waits_for_a_plan(gateway: GatewayProcess) -> None:
    operator = OperatorClient(gateway)
    operator.until("asked", seconds=300)
    operator.post("leave", page=operator.page)
