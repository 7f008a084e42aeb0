"""`wovr plan` tells what a run costs, and what it cannot tell."""

from typer.testing import CliRunner

from pipelines.cli.app import app


def test_a_plan_has_work_memory_and_data():
    answer = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["plan", "tabletop", "--chip", "a100"])
    assert answer.exit_code == 0, answer.output
    for part in ("Work of a run, on a100", "Memory of a GPU, of 80 GB", "real episodes to learn from", "not measured"):
        assert part in answer.output


def test_a_chip_that_is_not_known_is_refused_with_those_that_are():
    answer = CliRunner().invoke(app, ["plan", "tabletop", "--chip", "tpu"])
    assert answer.exit_code == 2
    assert "choose one of a100, h100" in " ".join(answer.output.split())


def test_a_batch_that_does_not_go_on_so_many_gpus_is_refused():
    answer = CliRunner().invoke(app, ["plan", "tabletop", "--gpus", "7"])
    assert answer.exit_code == 2
    assert "world_model.batch 32 in 1 parts does not go evenly on 7 GPUs" in " ".join(answer.output.split())
