"""The `wovr` command, which Ctrl-C ends cleanly even while it is being imported."""

from pipelines.stopping import end_at_once


def main() -> None:
    end_at_once()
    from pipelines.cli import app

    app()


if __name__ == "__main__":
    main()
