"""`wovr robot`: the arm beside this PC, its gateway, and how far the trials there are.

The PC has no torch, no kfp and no mlflow; this file and what it imports need none.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, path, plainly
from wovr_core.setting_errors import SettingsError

if TYPE_CHECKING:
    from components.serving.robot.trials_in_hand import TrialsInHand

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""The arm beside this PC: `check` it, send it `home`, `serve` its gateway, look how far the `trials` are.

    CELL.yaml says which arm and cameras there are. This is one to try things with, at a desk:

        echo 'arm: fake' > cell.yaml; wovr robot check cell.yaml

    And this is a real one; docs/robots.md has the wiring, the limits and how to add an arm:

        arm: franka
        franka: {host: 172.16.0.2}
        cameras: [{name: agentview, kind: realsense}, {name: wrist, kind: opencv, device: "0"}]
    """,
)
KEY = "WOVR_ROBOT_KEY"
PATIENCE = 30.0  # seconds for an answer
MOST = 10  # reasons that are listed
PHASES = {
    "asked": "a plan waits for the operator's go",
    "scene": "the scene is to be laid out",
    "ready": "the operator is to arm",
    "starting": "a trial begins",
    "homing": "the arm goes home",
    "running": "a trial runs",
    "label": "a trial waits for its label",
    "done": "done",
    "refused": "refused",
}

Cell = Annotated[Path, typer.Argument(parser=path, metavar="CELL.yaml", help="The cell's settings.")]


@app.command("check")
def check_robot(cell: Cell) -> None:
    """Connect, and say where the arm is and what the cameras see. Nothing moves."""
    with _program():
        from components.serving.robot.program import described, opened

        with opened(cell) as (service, _):
            for line in described(service):
                console.print(escape(line), soft_wrap=True)


@app.command("home")
def home_robot(cell: Cell) -> None:
    """Send the arm to where trials begin, once a person beside it has typed yes. The fingers open."""
    with _program():
        from components.serving.robot.program import described, opened, send_home

        with opened(cell) as (service, _):
            asked = "The arm will move. Is its way home free, and the stop in your hand? Type yes"
            if typer.prompt(asked, default="", show_default=False) != "yes":
                console.print("nothing moved")
                return
            send_home(service)
            for line in described(service):
                console.print(escape(line), soft_wrap=True)


@app.command("serve")
def serve_robot(
    cell: Cell,
    folder: Annotated[
        Path, typer.Option(parser=path, help="Where plans, ledgers and recordings are kept; back it up.")
    ] = Path("trials"),
    address: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """The gateway and its operator's page. A pipeline asks it for trials; a person beside the arm makes them.

    Three keys come from the environment, 16 characters or more: $WOVR_ROBOT_KEY of the job, $WOVR_ROBOT_OPERATOR_KEY
    of the person, and $WOVR_ROBOT_POLICY_KEY, one of the policy server's $WOVR_POLICY_TOKEN_KEYS.

    Killed at any moment and started again with the same --folder, it goes on where it was. It stops with Ctrl-C or
    SIGTERM: the arm brakes first.
    """
    with _program():
        from components.serving.robot.program import opened, serve

        with opened(cell) as (service, cfg):
            where = f"the operator's page: http://{address}:{port}"
            say = lambda: console.print(where, soft_wrap=True)  # noqa: E731
            serve(service, cfg, folder=folder, address=address, port=port, on_start=say)


@app.command("trials")
def show_trials(gateway: Annotated[str, typer.Option(help="The gateway's address.")] = "http://127.0.0.1:8000") -> None:
    """How far the trials at the gateway are, and what broke off and by whose doing. It shows no label.

    The key comes from $WOVR_ROBOT_KEY, as the gateway was started with. The plan waits where the operator left it, also
    over a restart; the job that asked for the trials says what came of them.
    """
    with _program():
        for line in _progress(_ask(gateway.rstrip("/"))):
            console.print(escape(line), soft_wrap=True)


@contextmanager
def _program() -> Iterator[None]:
    with plainly():
        try:
            yield
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"{error.name} is not installed: install the extra franka, or use the image wovr-robot (docs/images.md)"
            ) from error


def _ask(gateway: str) -> "TrialsInHand":
    import os

    import requests
    from pydantic import ValidationError

    from components.serving.robot.trials_in_hand import TrialsInHand

    headers = {"Authorization": f"Bearer {os.environ.get(KEY, '')}"}
    try:
        answer = requests.get(f"{gateway}/trials", headers=headers, timeout=PATIENCE, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        raise SettingsError(
            f"nobody answers at {gateway} ({type(error).__name__}): start the gateway with `wovr robot serve`, or say "
            f"where it is with --gateway"
        ) from error
    if answer.status_code == 401:
        raise SettingsError(f"{gateway} does not know the key in ${KEY}: set it to the one that it was started with")
    if not answer.ok:
        raise SettingsError(f"{gateway} answers {answer.status_code}: {answer.text[:300]}")
    try:
        return TrialsInHand.model_validate_json(answer.content)
    except ValidationError as error:
        raise SettingsError(f"{gateway} is no gateway of this version: look at --gateway") from error


def _progress(now: "TrialsInHand") -> Iterator[str]:
    robot = ", ".join(filter(None, [now.robot.mode, "armed" if now.robot.armed else "not armed", now.robot.words]))
    if not now.id:
        yield "no trials: a pipeline asks for some with `franka.gateway` set to this address"
        yield f"arm: {robot}"
        return
    yield f"trials {now.id}: {PHASES.get(now.phase, now.phase)}" + (f" ({now.reason})" if now.reason else "")
    yield f"pairs: {now.pairs_done} done, {now.pairs} at most"
    if now.phase not in ("done", "refused"):
        yield f"due: trial {now.trial + 1}, attempt {now.attempt + 1}: {now.instruction}"
    if now.paused:
        yield f"paused: {now.paused}"
    yield f"attempts that broke off: {len(now.broken)}"
    reasons = Counter((one.cause, one.again, one.reason) for one in now.broken)
    for (cause, again, reason), count in sorted(reasons.items())[:MOST]:
        yield f"  {cause}, {count} x{'' if again else ' (counts as a failure)'}: {reason}"
    if len(reasons) > MOST:
        yield f"  and {len(reasons) - MOST} more reasons"
    yield f"arm: {robot}"
    yield now.power
