"""A Python that has LeRobot, apart from ours: LeRobot asks for packages that we do without."""

import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = """
    accelerate==1.15.0 datasets==5.2.0 deepdiff==9.1.0 dill==0.4.1 draccus==0.11.6 einops==0.8.2 ImageIO==2.38.1
    jsonlines==4.0.0 lerobot==0.4.4 mergedeep==1.3.4 multiprocess==0.70.19 orderly-set==5.5.0 pynput==1.8.2
    pyyaml-include==2.2 toml==0.10.2 typing-inspect==0.9.0 xxhash==4.1.0
"""


def lerobot_python(folder: Path) -> Path:
    """The Python of a new environment in `folder`; torch and the like are borrowed from ours.

    Raises `RuntimeError` where LeRobot cannot be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python, ours = folder / "bin" / "python", sysconfig.get_paths()["purelib"]
    there = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], check=True, capture_output=True
    )
    (Path(there.stdout.decode().strip()) / "ours.pth").write_text(f"import sys; sys.path.append({ours!r})\n")
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        *PACKAGES.split(),
    ]
    got = subprocess.run(pip, capture_output=True, text=True)
    if got.returncode:
        raise RuntimeError(f"LeRobot cannot be installed here: {got.stderr[-300:]}")
    return python
