"""Every word of the method has its component, and the component only carries."""

import ast
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import yaml
from kfp.dsl.base_component import BaseComponent

from tools.component_readmes import table, written
from wovr_core.settings import Settings

COMPONENTS = Path(__file__).parents[2] / "components"
WORDS = sorted(path.parent.name for path in COMPONENTS.glob("*/component.py"))


def carriers(word: str) -> dict[str, BaseComponent]:
    module = import_module(f"components.{word}.component")
    return {name: value for name, value in vars(module).items() if isinstance(value, BaseComponent)}


def test_words_are_branches_of_the_settings():
    assert set(WORDS) == set(Settings.model_fields) - {"task", "compute"} | {"finish"}


@pytest.mark.parametrize("word", WORDS)
def test_metadata_says_what_the_community_layout_asks(word):
    metadata = yaml.safe_load((COMPONENTS / word / "metadata.yaml").read_text())
    assert metadata.keys() == {"name", "stability", "dependencies", "tags", "lastVerified"}
    assert metadata["name"] == word
    assert metadata["stability"] in ("alpha", "beta", "stable")
    assert yaml.safe_load((COMPONENTS / word / "OWNERS").read_text())["approvers"]


@pytest.mark.parametrize("word", WORDS)
def test_the_tables_of_ports_are_those_of_the_code(word):
    readme = (COMPONENTS / word / "README.md").read_text()
    assert written(readme, carriers(word)) == readme, "run python -m tools.component_readmes"
    for carrier in carriers(word).values():
        assert table(carrier) in readme


@pytest.mark.parametrize("word", WORDS)
def test_a_carrier_takes_only_its_own_branches(word):
    """So that editing one branch runs again only what it concerns."""
    for name, carrier in carriers(word).items():
        parameters = signature(carrier.python_func).parameters.values()
        branches = {p.name for p in parameters if p.annotation is dict}
        assert branches <= set(Settings.model_fields), name
        assert branches or word == "finish" or name == "report_trials", "which tell and decide nothing"


@pytest.mark.parametrize("word", WORDS)
def test_a_component_file_needs_kfp_and_nothing_else(word):
    tree = ast.parse((COMPONENTS / word / "component.py").read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    rooms = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert rooms <= {"kfp", "components"}
    assert {name for name in imported if name.startswith("components")} <= {"components", "components.artifacts"}


def test_the_image_is_of_this_version():
    import tomllib

    from components import images

    project = tomllib.loads((COMPONENTS.parent / "pyproject.toml").read_text())["project"]
    assert f"wovr:{project['version']}" == images.TRAIN


@pytest.mark.parametrize("word", WORDS)
def test_a_carrier_can_be_read_at_a_glance(word):
    """A port more than that is a thing that another artifact should know."""
    for name, carrier in carriers(word).items():
        assert len(signature(carrier.python_func).parameters) <= 11, name
