"""The `wovr` command, which Ctrl-C ends cleanly even while it is being imported."""

from pipelines.runner.stopping import end_at_once


def main() -> None:
    end_at_once()
    from pipelines.cli.app import app

    app()


if __name__ == "__main__":
    main()
