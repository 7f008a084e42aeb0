"""The whole evaluation on the simulated cell: policies that see and pick, real servers, a person at a real page.

franky-sim behind libfranka's protocol, MuJoCo, `wovr robot serve` with franky, `wovr serve-policy`, the job of the
pipeline, and Chromium, in which the operator works by keyboard alone. The person's eye is the cube's height in the
simulator; nobody else is told it. `make franka` runs it: some 20 trials of 10 s of robot time each.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml

from components.platform.robot import try_on_robot
from components.serving.robot.cell_client import SimulatedCell
from tests.components.policies_served import ADMIN, BLIND, free_port, serving
from tests.components.test_robot_page import CHROMIUM, DESK, PATIENCE, QUIET, picture, playwright, reads
from wovr_core.artifacts import Manifest, load_table
from wovr_core.franka.ledger import TrialRecord
from wovr_core.policy.scripted_pick import PickShape
from wovr_core.settings import FrankaSettings, PromoteSettings, TaskSettings
from wovr_core.steps.evaluate import judge
from wovr_core.steps.robot_report import write_robot_report
from wovr_core.store.facts import Trial
from wovr_core.store.policies import write_scripted_pick

pytest.importorskip("franky")
pytest.importorskip("franky_sim")

TASK = TaskSettings.model_validate(
    {"environment": "franka", "cameras": ["agentview"], "image_size": 128, "horizon": 48}
)
JOB, OPERATOR = "job-key-0123456789", "operator-key-0123456789"
SIDE = (0.12, -0.11, 0.0, 0.13, -0.12, 0.10, -0.13, 0.11, -0.10, 0.12)  # m, where the cube lies in each pair
AHEAD = (0.50, 0.46, 0.52, 0.55, 0.44, 0.48, 0.53, 0.45, 0.51, 0.47)
MISJUDGES = 1.8  # the worse policy takes the cube to lie so many times farther to the side: only the third it finds
LIFTED = 0.1  # m: higher, a cube was picked up


class OperatorAtThePage:
    """A person who lays out cubes, arms, watches and labels; all by keys, and without knowing a policy."""

    def __init__(self, page: Any, cell: SimulatedCell) -> None:
        self.page, self.cell = page, cell
        self.seen: list[bool] = []  # what was labelled
        self.notices: set[str] = set()

    def enter(self, url: str) -> None:
        self.page.goto(url)
        self.page.get_by_label("Your name").wait_for()
        for key in ("Ada", "Tab", OPERATOR, "Enter"):
            if key in ("Tab", "Enter"):
                self.page.keyboard.press(key)
            else:
                self.page.keyboard.type(key)

    def work(self, job: threading.Thread) -> None:
        """Until the trials are over, or the job has failed."""
        while job.is_alive():
            now = self.page.locator("#state").inner_text()
            if now == "New plan":
                picture(self.page, "cell-1-plan")
                self.press("Enter", "Lay out the scene")
            elif now == "Lay out the scene":
                self.lay_out()
            elif now == "Ready":
                self.page.keyboard.press("a")
                self.leaves("Ready")
            elif now == "Running":
                self.watch()
            elif now == "Label":
                self.label()
            else:
                self.page.wait_for_timeout(200)

    def lay_out(self) -> None:
        pair = self.trial // 2 % len(SIDE)
        self.cell.reset(AHEAD[pair], SIDE[pair])
        if (notice := self.page.locator("#notice")).is_visible():
            self.notices.add(notice.inner_text())
        self.page.wait_for_timeout(1500)  # a person is slower than a job that has seen enough
        picture(self.page, f"cell-2-scene-{self.trial:02}")
        if self.page.locator("#state").inner_text() == "Lay out the scene":
            self.press("Enter", "Ready", "Lay out the scene")

    def watch(self) -> None:
        if self.lifted:
            picture(self.page, f"cell-3-lifted-{self.trial:02}")
            self.page.keyboard.press("y")
            self.leaves("Running")
        self.page.wait_for_timeout(300)

    def label(self) -> None:
        self.seen.append(self.lifted)
        self.page.keyboard.press("y" if self.seen[-1] else "n")
        picture(self.page, f"cell-4-label-{self.trial:02}")
        self.page.keyboard.press("Enter")
        self.leaves("Label")

    @property
    def trial(self) -> int:
        """Its number, as the page shows it."""
        return int(self.page.locator("#count").inner_text().split()[1]) - 1

    @property
    def lifted(self) -> bool:
        return self.cell.state()["cube"][2] > LIFTED

    def press(self, key: str, *then: str) -> None:
        self.page.keyboard.press(key)
        reads(self.page, *then)

    def leaves(self, title: str) -> None:
        late = time.monotonic() + PATIENCE / 1000
        while self.page.locator("#state").inner_text() == title:
            assert time.monotonic() < late, f"the page stays at {title}"
            self.page.wait_for_timeout(50)


@pytest.fixture
def cell() -> Iterator[SimulatedCell]:
    with SimulatedCell(size=TASK.image_size) as cell:
        yield cell


@pytest.fixture
def gateway(cell: SimulatedCell, tmp_path: Path) -> Iterator[str]:
    """`wovr robot serve` for that cell; its address."""
    cameras = [{"name": name, "kind": "simulated", "device": str(cell.cameras)} for name in ("agentview", "wrist")]
    tree = {
        "arm": "franka",
        "franka": {"host": cell.host, "realtime": False, "homing": 1.0},
        "cameras": cameras,
        "limits": {"age": 20},  # a busy machine answers late
        "execution": {"watchdog": 5, "policy_patience": 30, "clock_patience": 60},
        "lease_seconds": 30,
        "trials": {"video_hz": 0.5},
    }
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump(tree))
    keys = {"WOVR_ROBOT_KEY": JOB, "WOVR_ROBOT_OPERATOR_KEY": OPERATOR, "WOVR_ROBOT_POLICY_KEY": BLIND}
    port = free_port()
    program = [sys.executable, "-m", "pipelines", "robot", "serve", str(tmp_path / "cell.yaml"), "--port", str(port)]
    process = subprocess.Popen([*program, "--folder", str(tmp_path / "trials")], env=os.environ | keys)
    url, late = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None and time.monotonic() < late, "the gateway did not start"
            try:
                requests.get(f"{url}/healthz", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.long
def test_the_policy_that_picks_better_wins_on_the_cell(stack, cell, gateway, tmp_path, monkeypatch):
    stack.up(["s3"])
    services = {name: value for name, value in stack.env().items() if name.startswith("WOVR_S3")}
    for name, value in (services | {"WOVR_ROBOT_KEY": JOB, "WOVR_POLICY_ADMIN_KEY": ADMIN}).items():
        monkeypatch.setenv(name, value)
    candidate, baseline = tmp_path / "candidate", tmp_path / "baseline"
    write_scripted_pick(PickShape(), TASK, out=candidate)
    write_scripted_pick(PickShape(stretch=MISJUDGES), TASK, out=baseline)
    out = {name: tmp_path / name for name in ("evaluation", "verdict", "report")}
    made: list[Manifest] = []

    def job(policy_server: str) -> None:
        cfg = FrankaSettings(gateway=gateway, policy_server=policy_server, episodes=30, control_every=0)
        made.append(try_on_robot(cfg, candidate=candidate, baseline=baseline, out=out["evaluation"], every=1.0))

    with serving(candidate, state=tmp_path / "state", env=services) as server, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport=DESK, reduced_motion="reduce")  # a dot that beats is drawn anew all the time
        page.set_default_timeout(PATIENCE)
        person = OperatorAtThePage(page, cell)
        person.enter(gateway)
        working = threading.Thread(target=job, args=(server.url,), daemon=True)
        working.start()
        person.work(working)
        assert made, "the job failed: its words are above"
        reads(page, "The trials are over")
        picture(page, "cell-5-over")
        browser.close()

    facts = made[0].summary["robot"]
    assert (facts["decision"], facts["gained"], facts["lost"], facts["pairs"]) == ("better", 9, 0, 10)
    rows = load_table(out["evaluation"], "trials", Trial)
    assert [(row.candidate, row.baseline) for row in rows] == [(True, side == 0) for side in SIDE]
    records = load_table(out["evaluation"], "attempts", TrialRecord)
    assert [record.success for record in records if not record.invalid] == person.seen
    assert {record.operator for record in records} == {"Ada"}
    judged = judge(PromoteSettings(), evaluation=out["evaluation"], out=out["verdict"])
    assert judged.summary["promote"]
    assert judged.summary["p_value"] == pytest.approx(exact_p_value(9, 0), rel=1e-4)
    assert facts["e_value"] == pytest.approx(wealth(9, 0), rel=1e-4) and facts["e_value"] >= 20
    write_robot_report(evaluation=out["evaluation"], verdict=out["verdict"], out=out["report"])
    text = (out["report"] / "report.html").read_text()
    for words in (f"p = {exact_p_value(9, 0):.4g}", f"e = {wealth(9, 0):.4g}", "10 pairs", "The candidate is better"):
        assert words in text, words


# --------------------------------------------------------------------------- the figures once more, by other means


def exact_p_value(gained: int, lost: int) -> float:
    """Of a fair coin: how likely it is to fall so unevenly, to either side."""
    n = gained + lost
    tail = sum(comb(n, k) for k in range(max(gained, lost), n + 1)) / 2**n
    return min(1.0, 2 * tail)


def wealth(gained: int, lost: int, points: int = 200_001) -> float:
    """Of all who bet a share on the sign of each pair that differs, by a trapezoid over shares; Beta(2, 2) of them."""
    share = np.linspace(-1, 1, points)
    return float(np.trapezoid(0.75 * (1 - share**2) * (1 + share) ** gained * (1 - share) ** lost, share))
