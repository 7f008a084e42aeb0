"""`wovr` with a small pipeline in place of the real ones, so that a run takes seconds.

python -m tests.faults.toy_run run tabletop --out FOLDER
"""


def main() -> None:
    from pipelines.runner.stopping import end_at_once

    end_at_once()
    from pipelines.cli import app as cli
    from pipelines.runner import forked, local, preflight
    from tests.faults.toy_pipeline import toy

    forked.FORKS.set_forkserver_preload(["kfp.dsl.executor_main", "wovr_core.artifacts"])
    preflight.check_settings = preflight.check_machine = lambda *_, **__: None
    local.pipeline_named = lambda name: lambda settings: toy
    cli.tell_outcome = lambda run: print("the end")
    cli.app()


if __name__ == "__main__":
    main()
