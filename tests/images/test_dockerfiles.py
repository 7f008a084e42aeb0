"""What every image keeps to, read from the files that make them."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from components import images
from pipelines.cli.app import app

CHECKOUT = Path(__file__).parents[2]
FILES = [CHECKOUT / "Dockerfile", *sorted((CHECKOUT / "images").glob("*/Dockerfile"))]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CHECKOUT)))
every_image = pytest.mark.parametrize("file", FILES[1:], ids=lambda file: file.parent.name)


class Stage(NamedTuple):
    """One stage of a Dockerfile: what it is on, its name, and its instructions as (word, rest)."""

    on: str
    name: str
    instructions: list[tuple[str, str]]

    def all(self, word: str) -> list[str]:
        return [rest for said, rest in self.instructions if said == word]


def instructions(file: Path) -> Iterator[tuple[str, str]]:
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word.upper(), rest.strip()


def stages(file: Path) -> list[Stage]:
    found: list[Stage] = []
    for word, rest in instructions(file):
        if word == "FROM":
            on, _, name = rest.partition(" AS ")
            found.append(Stage(on, name, []))
        elif found:
            found[-1].instructions.append((word, rest))
    return found


def test_there_is_an_image_for_every_kind_of_work():
    assert {file.parent.name for file in FILES[1:]} == {"train", "sim", "triton", "robot"}


@every_file
def test_what_it_is_built_on_is_an_argument(file):
    assert next(instructions(file))[0] == "ARG"
    assert next(instructions(file))[1].startswith("BASE=")
    known = {"${BASE}"}
    for stage in stages(file):
        assert stage.on in known, f"a stage is on {stage.on}"
        known.add(stage.name)


@every_file
def test_nobody_in_it_is_root(file):
    last = stages(file)[-1]
    assert last.all("USER")[-1] == "10001:10001"
    after = last.instructions[last.instructions.index(("USER", "10001:10001")) :]
    assert not [rest for word, rest in after if word in ("RUN", "COPY", "ADD")]


@every_image
def test_what_was_needed_to_build_it_stays_in_other_stages(file):
    *earlier, last = stages(file)
    assert earlier
    for run in last.all("RUN"):
        assert "secret" not in run, "a secret belongs where nothing is kept"
        if "pip" in run:
            assert "--no-index" in run and "--no-cache-dir" in run and "from=" in run
        if "apt-get install" in run:
            assert "--no-install-recommends" in run and "rm -rf /var/lib/apt/lists/*" in run
        assert not re.search(r"\b(gcc|g\+\+|clang|build-essential|cmake|curl|git)\b", run)
    assert not [rest for rest in last.all("COPY") if "/opt/pip" in rest or rest.startswith(". ")]


@every_image
def test_everything_in_it_is_pinned(file):
    for stage in stages(file):
        for run in stage.all("RUN"):
            for command in re.findall(r"pip wheel [^&]*", run):
                assert re.search(r"-[cr] \S*(constraints|requirements)\.txt|--no-deps", command), command
    if file.parent.name == "triton":
        ours = dict(re.findall(r"^([\w.-]+)==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE))
        theirs = (file.parent / "requirements.txt").read_text()
        for line in filter(lambda line: line and not line.startswith("#"), theirs.splitlines()):
            name, _, release = line.partition("==")
            assert release, f"{line} is not pinned"
            if name not in ("nvidia-pytriton", "numpy"):
                assert release == ours[name], f"{name} is {ours[name]} everywhere else"


@every_image
def test_it_says_what_it_is_and_of_which_release(file):
    (labels,) = stages(file)[-1].all("LABEL")
    for label in ("title", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f"VERSION={PROJECT['version']}" in stages(file)[-1].all("ARG")
    assert images.TRAIN.endswith(f":{PROJECT['version']}") or "WOVR_IMAGE" in images.os.environ


@every_image
def test_the_largest_layer_comes_first_and_the_code_last(file):
    installs = [run for run in stages(file)[-1].all("RUN") if "pip" in run]
    if file.parent.name in ("train", "triton"):
        assert installs[0].endswith(" torch")
    if file.parent.name != "sim":  # which has the code from the image that it is built on
        assert installs[-1].endswith("--no-deps /own/*.whl")


def test_the_robots_image_is_the_gateway():
    (command,) = stages(CHECKOUT / "images" / "robot" / "Dockerfile")[-1].all("CMD")
    group, name, *options = json.loads(command)[1:]
    known = [option for one in get_command(app).commands[group].commands[name].params for option in one.opts]
    assert set(options[1::2]) <= set(known) and "/cell/cell.yaml" in options


@every_image
def test_it_brings_a_smoke_of_its_own(file):
    compile((file.parent / "smoke.py").read_text(), str(file.parent / "smoke.py"), "exec")


def extras(image: str) -> list[str]:
    """That it is built with, unless somebody wishes others."""
    (wish,) = [
        one
        for stage in stages(CHECKOUT / "images" / image / "Dockerfile")
        for one in stage.all("ARG")
        if "EXTRAS" in one
    ]
    return wish.partition("=")[2].strip('"').split()


def test_an_image_holds_what_its_extras_ask_for():
    from runpy import run_path

    requirements = run_path(str(CHECKOUT / "images" / "requirements.py"))["requirements"]
    everything, optional = requirements(PROJECT, extras("train")), PROJECT["optional-dependencies"]
    assert set(PROJECT["dependencies"]) < set(everything) and "prometheus-client" in everything
    assert set(optional["serving"]) <= set(everything), "the policy server runs in it"
    beside = requirements(PROJECT, ["only", *extras("robot")])
    assert beside == [*optional["franka"], *optional["cameras"]] and not [one for one in beside if "torch" in one]
    with pytest.raises(KeyError):
        requirements(PROJECT, ["nonesuch"])
