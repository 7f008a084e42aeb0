"""One step alone, outside any pipeline: from settings and the paths of artifacts to an artifact."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from components.platform.mlflow_client import check_tracking
from components.platform.storage import Storage
from components.platform.tracking import following
from pipelines.cli.words import STEPS
from wovr_core.artifacts import Manifest
from wovr_core.artifacts.names import is_address
from wovr_core.section import Section
from wovr_core.settings import Settings

S3 = "s3://"


class PortsError(ValueError):
    """Ports a step does not have, or lacks."""


class StepError(RuntimeError):
    """What this machine lacks for a step."""


def run_step(word: str, settings: Settings, words: Sequence[str]) -> Any:
    """Run a step with ports as they stand on a command line, in `words`: --policy PATH --out PATH."""
    function = step_named(word)
    values = dict(_read(word, function, words))
    check_step(word, settings)
    stored = str(values["out"]) if str(values.get("out", "")).startswith(S3) else ""
    name = Storage.from_env().name_in(stored) if stored else ""  # before the work
    values = {name: value if name == "out" else _fetched(value) for name, value in values.items()}
    if stored:
        values["out"] = _place(stored)
    if rank := int(os.environ.get("RANK", 0)):  # of torchrun's processes the first one writes
        values["out"], stored = values["out"].with_name(f".{values['out'].name}.rank-{rank}"), ""
    hints = get_type_hints(function)
    wanted = [hints[name] for name in signature(function).parameters if _is_branch(hints[name])]
    branches = {name: branch for kind in wanted for name, branch in settings if type(branch) is kind}
    with _followed(word, branches) if "tracker" in hints and not rank else nullcontext({}) as beside:
        done = function(*branches.values(), **values, **beside)
    if stored:
        Storage.from_env().put(values["out"], name)
    return done


@contextmanager
def _followed(word: str, branches: Mapping[str, Section]) -> Iterator[dict[str, Any]]:
    """The tracker that a step asks for: None where no server of MLflow is named."""
    settings = {name: branch.model_dump(mode="json") for name, branch in branches.items()}
    with following("world_model refit" if word == "pace" else word, settings) as tracker:
        yield {"tracker": tracker}


def check_step(word: str, settings: Settings) -> None:
    """Refuse to begin a step that lacks a simulator or a service here; it looks at its artifacts itself."""
    if word in ("policy", "collect", "evaluate"):
        settings.task.embodiment.check()
    if word == "serve" and not os.environ.get("WOVR_TRITON_URL"):
        raise StepError(
            "WOVR_TRITON_URL names no Triton server, so there is nowhere to serve a world model. See docs/services.md"
        )
    if word == "promote":
        check_tracking(experiments=[settings.promote.model])


def _fetched(value: Any) -> Any:
    """What lies in S3 is brought here first; a step knows folders only."""
    if isinstance(value, tuple):
        return tuple(_fetched(each) for each in value)
    if isinstance(value, dict):
        return {name: _fetched(each) for name, each in value.items()}
    if isinstance(value, str) and value.startswith(S3):
        Storage.from_env().get(value, _place(value))
        return _place(value)
    return value


def _place(uri: str) -> Path:
    """Where what lies in S3 is kept here, under the same name for whoever asks."""
    return Path(os.environ.get("WOVR_SCRATCH", "runs/scratch")) / "s3" / sha256(uri.encode()).hexdigest()[:16]


def step_named(word: str) -> Callable[..., Manifest]:
    if word not in STEPS:
        raise PortsError(f"there is no step {word!r}: choose one of {', '.join(STEPS)}")
    module, name = STEPS[word].split(":")
    return getattr(import_module(module), name)


def usage(word: str, function: Callable[..., Any]) -> str:
    """How a step's ports are given."""
    ports = []
    for name, kind, required in _ports(function):
        several = " (several)" if _by_name(kind) else " (several: oldest first)" if _many(kind) else ""
        one = f"--{name} {_form(kind)}{several}"
        ports.append(one if required else f"[{one}]")
    return f"wovr step {word} CONFIG {' '.join(ports)}"


def _form(kind: Any) -> str:
    return "N" if _integer(kind) else "NAME" if kind is str else "NAME=PATH" if _by_name(kind) else "PATH"


def _ports(function: Callable[..., Any]) -> list[tuple[str, Any, bool]]:
    """Name, type, and whether it must be given."""
    hints = get_type_hints(function)
    return [
        (name, hints[name], parameter.default is Parameter.empty)
        for name, parameter in signature(function).parameters.items()
        if _is_port(hints[name])
    ]


def _read(word: str, function: Callable[..., Any], words: Sequence[str]) -> list[tuple[str, Any]]:
    texts: dict[str, list[str]] = {}
    for name, text in zip(words[::2], words[1::2], strict=False):
        if not name.startswith("--"):
            raise PortsError(f"{name!r} is no port of the step {word}: each is --NAME VALUE\n{usage(word, function)}")
        texts.setdefault(name.removeprefix("--").replace("-", "_"), []).append(text)
    ports = _ports(function)
    unknown = texts.keys() - {name for name, *_ in ports}
    missing = {name for name, _, required in ports if required} - texts.keys()
    if unknown or missing or len(words) % 2:
        wrong = [f"has no --{name}" for name in sorted(unknown)] + [f"wants --{name}" for name in sorted(missing)]
        raise PortsError(
            f"the step {word} {', '.join(wrong) or 'wants a value for each port'}\n{usage(word, function)}"
        )
    return [(name, _value(name, kind, texts[name])) for name, kind, _ in ports if name in texts]


def _value(name: str, kind: Any, texts: list[str]) -> Any:
    if not _many(kind) and len(texts) > 1:
        raise PortsError(f"--{name} is given {len(texts)} times, and takes one value. Leave one of them")
    if _integer(kind):
        if not texts[0].isascii() or not texts[0].isdigit():
            raise PortsError(f"--{name} is {texts[0]!r}, and takes a whole number. Write it in digits")
        return int(texts[0])
    if kind is str:
        return texts[0]
    if _by_name(kind):
        pairs = [text.partition("=") for text in texts]
        if wrong := [text for text, (word, _, path) in zip(texts, pairs, strict=True) if not word or not path]:
            raise PortsError(f"--{name} is {wrong[0]!r}, and takes a name and a path. Write NAME=PATH")
        return {word: _path(name, path) for word, _, path in pairs}
    paths = tuple(_path(name, text) for text in texts)
    return paths if _many(kind) else paths[0]


def _path(name: str, text: str) -> str | Path:
    if not text:
        raise PortsError(f"--{name} is empty, and takes a path. Write one")
    if is_address(Path(text)) and not text.startswith(S3):
        raise PortsError(f"--{name} is {text!r}, which was an address, but takes a path or s3://BUCKET/NAME. Write one")
    return text if text.startswith(S3) else Path(text)


def _integer(kind: Any) -> bool:
    return int in (kind, *get_args(kind))


def _by_name(kind: Any) -> bool:
    return get_origin(kind) is Mapping


def _many(kind: Any) -> bool:
    """Does a port take several paths? One that may be left out has arguments too: Path and None."""
    return bool(get_args(kind)) and type(None) not in get_args(kind)


def _is_port(kind: Any) -> bool:
    """A path, several, or a number; what a step is handed as an object, a tracker say, cannot be typed."""
    return bool({Path, int, str} & {kind, *get_args(kind)})


def _is_branch(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
