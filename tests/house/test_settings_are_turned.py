"""A setting exists because somebody turns it: a shipped configuration, a benchmark, or a page that says when."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from wovr_core.settings import Settings

ROOT = Path(__file__).parents[2]
MOST = 130  # five of them say with what a run begins


def settings_of(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted name of every leaf of the tree."""
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        branch = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel) and k.model_fields), None)
        yield from settings_of(branch, f"{above}{name}.") if branch else [above + name]


def turned_in(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield above + name
        if isinstance(value, dict):
            yield from turned_in(value, f"{above}{name}.")


SETTINGS = list(settings_of(Settings))
CONFIGS = [yaml.safe_load(path.read_text()) for path in (ROOT / "pipelines/configs").glob("*.yaml")]
BACKBONES = [
    {"world_model": {"architecture": json.loads(path.read_text())}}
    for path in (ROOT / "wovr_core/world_model/pretrained").glob("*/architecture.json")
]
TURNED = {name for tree in CONFIGS + BACKBONES for name in turned_in(tree or {})}
PAGES = [
    *(ROOT / "docs").glob("*.md"),
    ROOT / "README.md",
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "tools").rglob("*.py"),
]
TEXT = "\n".join(path.read_text() for path in PAGES)


def test_there_are_few_settings() -> None:
    assert len(SETTINGS) <= MOST


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_is_turned_by_somebody(setting: str) -> None:
    branch_and_name = ".".join(setting.split(".")[-2:])
    assert setting in TURNED or branch_and_name in TEXT, f"nobody turns {setting}: delete it, or say when to turn it"
