"""Is this machine fit to run WoVR? Each check says what to do when it fails. Imports nothing heavy until it looks."""

import os
import shutil
import sys
from hashlib import file_digest
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from wovr_core.free_memory import available_memory

PACKAGES = ["torch", "diffusers", "numpy", "pydantic", "safetensors", "pyarrow", "av", "scipy"]
PACKAGES += ["kfp", "mlflow", "minio"]
BACKBONES = Path(__file__).parents[2] / "wovr_core" / "world_model" / "pretrained"
DISK, MEMORY = 1.0, 4.0  # GB; a quick start leaves 0.1 GB behind, its reward training peaks at 3 GB


class Check(NamedTuple):
    """What was looked at, what was found, and what to do about it if it will not do."""

    what: str
    found: str
    mend: str = ""


def examine(folder: Path) -> list[Check]:
    """Python, disk, memory, threads, GPUs, the shipped backbone, packages."""
    release, free, memory = sys.version.split()[0], shutil.disk_usage(folder).free / 1e9, available_memory() / 1e9
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    old, crowded = sys.version_info < (3, 11), threads.isdigit() and int(threads) > cores
    room = f"a run wants {DISK:g} GB: make room, or use --out"
    spare = f"the quick start wants {MEMORY:g} GB: close something or allow more"
    at_work = f"{cores} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    fewer = f"more threads than cores crawl: unset OMP_NUM_THREADS or set it to {cores}"
    return [
        Check("Python", release, "needs 3.11: make setup PYTHON=/path/to/python" if old else ""),
        Check("disk", f"{free:.1f} GB free", room if free < DISK else ""),
        Check("memory", f"{memory:.1f} GB available", spare if memory < MEMORY else ""),
        Check("threads", at_work, fewer if crowded else ""),
        gpus(),
        *backbones(),
        *map(package, PACKAGES),
    ]


def gpus() -> Check:
    """Which GPUs a step would compute on; none is no fault, unless $WOVR_DEVICE asks for one."""
    try:
        torch = import_module("torch")
        missing = import_module("wovr_core.training.device").missing_gpu()
    except Exception as error:  # as below
        return Check("GPU", f"torch cannot be imported ({error})", "make setup")
    wanted = "$WOVR_DEVICE is cuda: mend it, or unset that" if os.environ.get("WOVR_DEVICE") == "cuda" else ""
    if missing:
        return Check("GPU", f"none used: {missing}", wanted)
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    each = ", ".join(f"{card.name} with {card.total_memory / 1e9:.0f} GB" for card in cards)
    return Check("GPU", f"{each}; torch {torch.__version__}, CUDA {torch.version.cuda}")


def package(name: str) -> Check:
    try:
        import_module(name)
        return Check(name, version(name))
    except Exception as error:  # a broken binary raises whatever it likes
        return Check(name, f"cannot be imported ({error})", "make setup")


def backbones() -> list[Check]:
    """The weights that a run starts from open, and which they are."""
    again = "install again, or `git checkout wovr_core/world_model/pretrained`"
    checks = []
    for file in sorted(BACKBONES.glob("*/weights.safetensors")):
        what = f"backbone {file.parent.name}"
        try:
            import_module("wovr_core.artifacts.manifest").refuse_pointer(file)
            with import_module("safetensors").safe_open(file, framework="numpy") as opened:
                count = len(opened.keys())
            with file.open("rb") as raw:
                digest = file_digest(raw, "sha256").hexdigest()
            checks.append(Check(what, f"{count} tensors, sha256 {digest[:12]}"))
        except Exception as error:  # as above
            checks.append(Check(what, f"cannot be opened ({error})", again))
    return checks or [Check("backbone", f"none in {BACKBONES}", again)]
