"""What the robot's side is made of can be imported, and torch is not there to weigh on it."""

from importlib.metadata import version
from importlib.util import find_spec

import franky

from wovr_core.settings import Settings

assert find_spec("torch") is None, "torch has come along"
assert franky.RealtimeConfig.Ignore is not None
Settings()
print(f"franky {version('franky-control')}, settings; no torch")
