"""The project imports from its image, knows its own code, ships its backbone, and can compute."""

import torch

from components.images import code
from pipelines.stack.doctor import backbones
from wovr_core.policy.tiny_vla import TinyVLA  # noqa: F401
from wovr_core.settings import Settings

Settings()
found = backbones()
assert not [check.mend for check in found if check.mend], found
assert torch.ones(2, 2).matmul(torch.ones(2, 2)).eq(2).all()
print(f"torch {torch.__version__}, code {code()}, {found[0].what}: {found[0].found}")
