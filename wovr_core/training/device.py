"""The device that a process computes on.

Models lie there and move what they are asked about; data, chance and whatever is written rest on the CPU, so that a
seed means the same dreams on every device.
"""

import os
import warnings

import torch

VARIABLE = "WOVR_DEVICE"  # what `compute.device` says, in the environment of a task


class DeviceError(RuntimeError):
    """A device that was asked for and is not there, and what to do about it."""


def compute_device() -> torch.device:
    """The CPU, or the GPU that is this process's: of those that torchrun has started each has its own ($LOCAL_RANK).

    $WOVR_DEVICE says which: auto (a GPU where there is one; also where it says nothing), cpu or cuda. Raises
    `DeviceError` where a GPU is asked for and cannot be used.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"${VARIABLE} is {wanted!r}: use auto, cpu or cuda")
    missing = missing_gpu() if wanted != "cpu" else ""
    if wanted == "cuda" and missing:
        raise DeviceError(
            f"a GPU is asked for (compute.device: cuda), but {missing}. Or set compute.device to cpu, which is slow "
            f"for anything but the tabletop"
        )
    if wanted == "cpu" or missing:
        return torch.device("cpu")
    here, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if here >= count:
        raise DeviceError(
            f"process {here} of this machine has no GPU of its own, for there are {count}: start {count} processes"
        )
    torch.cuda.set_device(here)
    return torch.device("cuda", here)


def missing_gpu() -> str:
    """Why no GPU can be used here, and what would mend it; empty where one can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that is too old warns, and is told below
        if torch.cuda.is_available():
            return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} here is built without CUDA: install a build that has it"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no driver, or one that is too old
        return f"CUDA does not start ({str(error).splitlines()[0].rstrip('. ')}): install a newer NVIDIA driver"
    return "none is visible to this process: see nvidia-smi and $CUDA_VISIBLE_DEVICES"
