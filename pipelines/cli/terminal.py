"""What all commands share: where they write, how they find settings, and how a mistake is told."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from pipelines.runner import stopping
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import Settings

OURS = ("wovr_core", "components", "pipelines")
# clients of services: what they raise is news from there, be it ours to mend or not
OUTSIDE = ("mlflow", "requests", "urllib3", "kfp", "kfp_server_api", "kubernetes", "docker", "minio", "tritonclient")
LONGEST = 500  # characters of such news
CONFIGS = Path(__file__).parents[1] / "configs"
console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)

Config = Annotated[str, typer.Argument(help="A settings file, or the name of one in pipelines/configs: `tabletop`.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="In place of the file's: task.seed=1; and again for another."),
]
Shrink = Annotated[bool, typer.Option("--shrink", help="All sizes small, to try the whole pipeline.")]
PipelineName = Annotated[str, typer.Option("--pipeline", help="posttrain, retrain, evaluate or franka.")]


def find_config(config: str) -> Path:
    named = CONFIGS / f"{config}.yaml"
    if Path(config).is_file() or not named.exists():
        path = Path(config)
        if not path.exists():
            known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
            raise SettingsError(f"there is no settings file {config}, and none of that name among: {known}")
        return path
    return named


def load_settings(path: Path, values: Sequence[str] | None, *, shrink: bool = False) -> Settings:
    """Those of a file, which may be like one of pipelines/configs."""
    return Settings.load(path, values or (), shipped=CONFIGS, shrink=shrink)


def run_folder(config: Path, pipeline: str, *, shrink: bool = False) -> Path:
    """Where a run of this file is kept, unless --out says otherwise."""
    name = f"{config.stem}-shrunk" if shrink else config.stem
    return Path("runs") / (name if pipeline == "posttrain" else f"{name}-{pipeline}")


def path(text: str) -> Path:
    """A path on a command line; an empty one is a variable that is not set, and no folder."""
    if not text:
        raise typer.BadParameter("it is empty. Write a path; this folder is .")
    return Path(text)


@contextmanager
def waiting(words: str) -> Iterator[Callable[[str], object]]:
    """Say what is waited for: in place on a terminal, elsewhere in a line when that changes or a minute has passed."""
    if console.is_terminal:
        with console.status(words) as spinner:
            yield spinner.update
        return
    last, when = "", time.monotonic()

    def tell(words: str) -> None:
        nonlocal last, when
        what, now = words.partition(" (")[0], time.monotonic()  # without the seconds
        if what != last or now - when >= 60:
            console.print(escape(words), soft_wrap=True)
            last, when = what, now

    yield tell


@contextmanager
def plainly() -> Iterator[None]:
    """What a user can mend is told in a few words; a bug of ours keeps its traceback."""
    try:
        with stopping.handled(at_once=False):
            yield
    except SettingsError as error:
        complaints.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        complaints.print(f"\n{stopping.WORDS}")
        raise typer.Exit(130) from error
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package not in (*OURS, *OUTSIDE) and not isinstance(error, OSError | MemoryError):
            raise
        words = _of_outside(package, error) if package in OUTSIDE else str(error) or type(error).__name__
        if package == "builtins" and isinstance(error, OSError) and error.filename:
            words = f"{error.filename}: {error.strerror}. Check the path, and who may use it"
        complaints.print(f"[red]{escape(words)}[/]", soft_wrap=True)
        raise typer.Exit(1) from error


def _of_outside(package: str, error: Exception) -> str:
    """What a service or its client says, in one paragraph and without the password that an address may hold."""
    from components.platform.mlflow_client import discreet

    return discreet(f"{package} says: {' '.join(str(error).split())[:LONGEST] or type(error).__name__}")


class App(typer.Typer):
    """Typer's, for terminals that know few letters, too: what they cannot show is shown as a question mark."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # closed: >&-
        sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
        for stream in (sys.stdout, sys.stderr):
            if "utf" not in (stream.encoding or "").lower():
                stream.reconfigure(errors="replace")
                os.environ["PYTHONIOENCODING"] = f"{stream.encoding}:replace"  # of the tasks, which print themselves
        return super().__call__(*args, **options)
