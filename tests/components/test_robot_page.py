"""The operator's page in a real browser: a pair of trials by keyboard alone, at a desk and on a phone.

Debian's Chromium, driven by Playwright. $WOVR_SCREENSHOTS names a folder that keeps what the page looked like.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.components.trials_bench import GatewayProcess, OperatorClient
from tests.components.trials_process import OPERATOR, Policies, a_plan
from tests.listening import listening

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tried in a browser: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("the page is tried in a browser: apt-get install chromium", allow_module_level=True)

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 380, "height": 800}
PATIENCE = 60_000  # ms

FAINT = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((n) => n / 255)
    .map((n) => n <= .04045 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4)
    .reduce((sum, n, i) => sum + n * [.2126, .7152, .0722][i], 0);
  const ground = (one) => { for (; one; one = one.parentElement) {
    const rgb = numbers(getComputedStyle(one).backgroundColor);
    if (rgb.length < 4 || rgb[3] > 0) return rgb;
  } };
  const contrast = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  return [...document.querySelectorAll("body *")]
    .filter((one) => one.offsetParent && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((one) => !one.closest(":disabled") && parseFloat(getComputedStyle(one).fontSize) > 0)
    .map((one) => [one.textContent.trim(), contrast(light(numbers(getComputedStyle(one).color)), light(ground(one)))])
    .filter(([, contrast]) => contrast < 4.5);
}"""  # words that do not stand out from what is behind them (WCAG AA), and by how much they do


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def policies() -> Policies:
    return Policies()


@pytest.fixture(scope="module")
def server(policies: Policies) -> Iterator[str]:
    with listening(policies) as url:
        yield url


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(tmp_path)
    gateway.start()
    yield gateway
    gateway.kill()


@pytest.fixture
def opened(browser: Any, gateway: GatewayProcess) -> Iterator[Callable[..., Any]]:
    """Opens the page; whatever it complains of in its console fails the test."""
    complaints: list[str] = []
    contexts = []

    def heard(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_page(viewport: dict[str, int] = DESK, *, enter: bool = True, **more: Any) -> Any:
        context = browser.new_context(viewport=viewport, **more)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(gateway.url)
        if enter:
            page.get_by_label("Your name").wait_for()
            page.keyboard.type("Ada")
            page.keyboard.press("Tab")
            page.keyboard.type(OPERATOR)
            page.keyboard.press("Enter")
            reads(page, "No trials", "New plan", "Lay out the scene", "Watching")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def until(page: Any, holds: Callable[[], bool], what: str) -> None:
    """Playwright's own waiting for a condition evaluates text, which the page's policy of content forbids."""
    late = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < late, f"the page never showed {what}: {page.locator('body').inner_text()}"
        page.wait_for_timeout(30)


def reads(page: Any, *titles: str) -> None:
    """Wait until the page's large words are one of these."""
    until(page, lambda: page.locator("#state").inner_text() in titles, " or ".join(titles))


def sees(page: Any, image: str) -> None:
    until(page, lambda: page.evaluate(f"document.getElementById('{image}').naturalWidth > 0"), image)


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("WOVR_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def fits(page: Any) -> None:
    """Nothing is wider than the page, what can be pressed is large enough for a thumb, and the stop is in sight."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for box in page.evaluate(
        "[...document.querySelectorAll('button, .choice, input:not([type=radio])')].filter(one => one.offsetParent)"
        ".map(one => { const box = one.getBoundingClientRect(); return [one.id || one.textContent, box.left, box.right, box.height] })"  # noqa: E501
    ):
        assert box[1] >= 0 and box[2] <= page.viewport_size["width"] and box[3] >= 44, box
    assert page.evaluate(FAINT) == []
    stop = page.locator("#stop").bounding_box()
    assert stop and stop["y"] >= 0 and stop["y"] + stop["height"] <= page.viewport_size["height"]


@pytest.mark.parametrize(("name", "viewport", "scheme"), [("desk", DESK, "light"), ("phone", PHONE, "dark")])
def test_a_pair_is_made_by_keyboard_alone(opened, gateway, server, policies, name, viewport, scheme):
    def look(step: str) -> None:
        picture(page, f"{name}-{step}")
        fits(page)

    page = opened(viewport, color_scheme=scheme, enter=False)
    page.get_by_label("Your name").wait_for()
    picture(page, f"{name}-0-login")
    page.keyboard.type("Ada")
    page.keyboard.press("Tab")
    page.keyboard.type(OPERATOR)
    page.keyboard.press("Enter")
    reads(page, "No trials")
    plan = a_plan(pairs=1, horizon=80)
    id = gateway.post(plan, server).json()["id"]
    reads(page, "New plan")
    assert plan.power in page.locator("#power").inner_text()
    assert "put the yellow block into the bowl" in page.locator("#instruction").inner_text()
    sees(page, "live")
    look("1-plan")

    page.keyboard.press("Enter")
    reads(page, "Lay out the scene")
    assert not page.locator("#overlay").is_visible()
    look("2-scene")
    page.keyboard.press("Enter")
    reads(page, "Ready")
    look("3-ready")
    page.keyboard.press("a")
    reads(page, "Running")
    look("4-running")
    reads(page, "Label")
    page.keyboard.press("n")
    page.keyboard.press("2")
    page.keyboard.press("+")
    page.keyboard.press("t")
    page.keyboard.type("slipped off")
    look("5-label")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")

    reads(page, "Lay out the scene")
    (gateway.folder / "block").write_text("190")
    page.locator("#overlay").wait_for()
    sees(page, "ghost")
    page.locator("#opacity").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    look("6-ghost")
    page.keyboard.press("g")
    assert not page.locator("#ghost").is_visible()
    page.keyboard.press("g")
    page.keyboard.press("Enter")
    reads(page, "Ready")
    page.keyboard.press("a")
    reads(page, "Running")
    page.keyboard.press("y")
    reads(page, "Label")
    page.keyboard.press("Enter")  # it succeeded: that is chosen already
    reads(page, "The trials are over")
    look("7-over")
    first, second = gateway.report(id)["records"]
    assert (first["success"], first["progress"], first["interventions"], first["note"]) == (
        False,
        0.5,
        1,
        "slipped off",
    )
    assert (second["success"], second["progress"], second["ended"]) == (True, 1.0, "success")
    assert {first["operator"], second["operator"]} == {"Ada"}


def test_space_stops_whatever_has_the_focus(opened, gateway, server):
    page = opened()
    gateway.post(a_plan(pairs=1, horizon=2000), server)
    reads(page, "New plan")
    page.locator("[data-do=accept]").click()
    page.locator("[data-do=confirm]").click()
    reads(page, "Ready")
    page.locator("[data-do=arm]").focus()
    page.keyboard.press("Space")  # stops, and arms nothing
    page.wait_for_timeout(1000)
    reads(page, "Ready")
    page.keyboard.press("Enter")
    reads(page, "Running")
    page.locator("[data-do=succeeded]").focus()
    page.keyboard.press("Space")
    reads(page, "Label")
    assert "You stopped it" in page.locator("#todo").inner_text()
    page.keyboard.press("i")
    page.keyboard.type("the hand was in the way")  # with its spaces
    picture(page, "desk-8-invalid")
    page.keyboard.press("Enter")
    reads(page, "Lay out the scene")
    assert "the hand was in the way" in page.locator("#notice").inner_text()
    picture(page, "desk-9-again")


def test_the_page_comes_back_by_itself_after_the_gateway(opened, gateway, server):
    page = opened(PHONE)
    gateway.post(a_plan(pairs=1), server)
    reads(page, "New plan")
    page.keyboard.press("Enter")
    reads(page, "Lay out the scene")
    gateway.kill()
    page.locator("#lost").wait_for()
    assert "stop on this page does not work" in page.locator("#lost").inner_text()
    picture(page, "phone-8-lost")
    gateway.start()
    page.locator("#lost").wait_for(state="hidden")
    reads(page, "Lay out the scene")
    page.keyboard.press("Enter")
    reads(page, "Ready")


def test_a_second_page_watches_and_may_stop(opened, gateway, server):
    first = opened()
    gateway.post(a_plan(pairs=1, horizon=2000), server)
    reads(first, "New plan")
    second = opened(PHONE)
    reads(second, "Watching")
    assert "Ada has the controls" in second.locator("#todo").inner_text()
    assert second.locator("#actions button:visible").count() == 0
    picture(second, "phone-9-watching")
    for key in ("Enter", "Enter", "a"):
        first.keyboard.press(key)
        first.wait_for_timeout(600)
    reads(first, "Running")
    second.locator("#stop").click()
    reads(first, "Label")


def test_a_wrong_key_and_a_stranger_see_nothing(opened, gateway, server):
    page = opened(enter=False)
    page.get_by_label("Your name").fill("Eve")
    page.get_by_label("Operator’s key").fill("wrong-key-0123456789")
    page.keyboard.press("Enter")
    page.locator("#error").wait_for()
    assert "not the operator's key" in page.locator("#error").inner_text()
    assert not page.locator("#desk").is_visible()
    assert json.loads(page.evaluate("JSON.stringify(document.cookie)")) == ""


def test_every_control_has_a_name_and_tab_reaches_the_stop(opened, gateway, server):
    page = opened()
    gateway.post(a_plan(pairs=1), server)
    reads(page, "New plan")
    page.keyboard.press("Enter")
    reads(page, "Lay out the scene")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input')].filter(one => one.offsetParent && !one.textContent.trim()"
        " && !one.labels?.length && !one.getAttribute('aria-label')).map(one => one.outerHTML)"
    )
    assert nameless == []
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.do || document.activeElement.id"))
    controls = ["confirm", "home", "pause", "refuse", "stop"]
    assert [one for one in reached if one in controls][:5] == controls


def test_a_user_stop_and_a_break_are_said_in_words(opened, gateway, server):
    page = opened(PHONE)
    gateway.post(a_plan(pairs=1, horizon=2000), server)
    reads(page, "New plan")
    page.keyboard.press("Enter")
    reads(page, "Lay out the scene")
    page.keyboard.press("p")
    page.keyboard.type("coffee")
    page.keyboard.press("Enter")
    page.get_by_text("Paused: coffee").wait_for()
    page.keyboard.press("Enter")
    reads(page, "Ready")
    page.keyboard.press("a")
    reads(page, "Running")
    gateway.hurt("user stop")
    reads(page, "Lay out the scene")
    assert "does not count: the user stop was pressed" in page.locator("#notice").inner_text()
    assert "Let it go" in page.locator("#todo").inner_text()
    picture(page, "phone-10-user-stop")
    page.keyboard.press("Enter")
    reads(page, "Ready")
    page.keyboard.press("a")
    page.locator("#error").wait_for()
    assert "user stop" in page.locator("#error").inner_text()
    watcher = OperatorClient(gateway, "Grace")
    assert watcher.look()["phase"] == "ready"
