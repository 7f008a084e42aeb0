"""What all commands share: where they write, how they find settings, and how a mistake is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from wovr_core.settings import SettingsError

CONFIGS = Path(__file__).parent / "configs"
console = Console(highlight=False)
complaints = Console(stderr=True, highlight=False)

Config = Annotated[str, typer.Argument(help="A settings file, or the name of one in pipelines/configs: `tabletop`.")]
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


@contextmanager
def plainly() -> Iterator[None]:
    """What a user can mend is told in a few words; a bug of ours keeps its traceback."""
    try:
        yield
    except SettingsError as error:
        complaints.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        complaints.print("\nstopped; the same command goes on from here")
        raise typer.Exit(130) from error
    except (OSError, ValueError, RuntimeError) as error:
        ours = type(error).__module__.startswith(("wovr_core", "pipelines", "components"))
        if not ours and not isinstance(error, OSError):
            raise
        complaints.print(f"[red]{escape(str(error))}[/]", soft_wrap=True)
        raise typer.Exit(1) from error
