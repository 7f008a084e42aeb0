"""A task that takes long, in a module of its own: the processes of `test_local.py` import little, and begin at once."""

import os
import time
from pathlib import Path

from pipelines.runner.forked import end_with_the_run


def lasting(pid: Path) -> None:
    end_with_the_run()
    pid.write_text(str(os.getpid()))
    time.sleep(60)
