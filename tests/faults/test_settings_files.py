"""A settings file that cannot be run is refused before anything runs, with the key and the fix."""

from pathlib import Path

import pytest

from tests.faults.harness import refused, wovr


def check(folder: Path, text: str):
    file = folder / "mine.yaml"
    file.write_text(text)
    return wovr("config", "check", str(file))


@pytest.mark.parametrize(
    "name",
    ["team/robot", "a:b", "o'brien", '""', "a b", ".hidden", "-x", "a.promotions", "é", "a" * 129, '"x\\n"'],
)
def test_a_model_that_mlflow_could_not_register_is_refused(tmp_path, name):
    refused(check(tmp_path, f"promote: {{model: {name}}}"), "promote.model", "letters, digits")


@pytest.mark.parametrize(
    "alias", ["latest", "Latest", "v1", "V22", "my champion", '""', "previous", "previous-x", "a.b", "a" * 129]
)
def test_an_alias_that_mlflow_or_its_log_could_not_move_is_refused(tmp_path, alias):
    refused(check(tmp_path, f"promote: {{alias: {alias}}}"), "promote.alias", "letters, digits")


@pytest.mark.parametrize("command", [("rollback", "--reason", "r"), ("adopt", "--reason", "r"), ("metrics",)])
def test_commands_refuse_the_names_that_settings_refuse(command):
    for name in ("team/robot", "", "o'brien"):
        refused(wovr(*command, "--", name), "cannot name a registered model")
    if "--reason" in command:
        refused(wovr(*command, "--alias", "v1"), "cannot be the alias")
