"""In which precision is computed: bfloat16 only where the processor has it."""

from contextlib import AbstractContextManager
from typing import Any

import torch


def computed_in(precision: str, device: torch.device) -> torch.dtype:
    """The precision asked for ("float32" or "bfloat16"), or float32 on a CPU that would have to emulate bfloat16.

    Without AVX-512 that takes 20 to 40 times as long (docs/log/performance.md).
    """
    slow = device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if precision == "bfloat16" and not slow else torch.float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Compute what follows in this precision, as far as `computed_in` lets it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computed_in(precision, device) is torch.bfloat16)
