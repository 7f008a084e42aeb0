"""The project imports from its image, knows its own code, ships its backbone, can compute, and can serve a policy."""

import subprocess

import torch

from components.images import code
from components.serving.policy.server import serve  # noqa: F401
from pipelines.stack.doctor import backbones
from wovr_core.policy.tiny_vla import TinyVLA  # noqa: F401
from wovr_core.settings import Settings

Settings()
found = backbones()
assert not [check.mend for check in found if check.mend], found
assert torch.ones(2, 2).matmul(torch.ones(2, 2)).eq(2).all()
open_door = ["wovr", "serve-policy", "models:/a@b", "--address", "0.0.0.0", "--state", "/tmp/state"]
refused = subprocess.run(open_door, capture_output=True, text=True)
assert refused.returncode == 1 and "there is no key" in refused.stderr, refused
print(f"torch {torch.__version__}, code {code()}, {found[0].what}: {found[0].found}")
