"""The pipelines there are, by the names that the `wovr` command and Kubeflow know."""

from collections.abc import Callable

from kfp.dsl.base_component import BaseComponent

from pipelines.evaluate import evaluate
from pipelines.franka import franka
from pipelines.posttrain import posttrain
from pipelines.retrain import retrain
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import Settings

PIPELINES: dict[str, Callable[[Settings], BaseComponent]] = {
    "posttrain": posttrain,
    "retrain": retrain,
    "evaluate": evaluate,
    "franka": franka,
}


def pipeline_named(name: str) -> Callable[[Settings], BaseComponent]:
    if name not in PIPELINES:
        raise SettingsError(f"there is no pipeline {name!r}: choose one of {', '.join(PIPELINES)}")
    return PIPELINES[name]


def arguments_of(pipeline: BaseComponent, settings: Settings) -> dict[str, object]:
    """The branches of the settings that a pipeline takes."""
    tree = settings.parameters()
    return {name: tree[name] for name in pipeline.component_spec.inputs if name in tree}
