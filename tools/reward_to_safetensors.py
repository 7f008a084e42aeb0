"""Makes a safetensors file of a reward model's .pth: `python -I tools/reward_to_safetensors.py IN.pth OUT.safetensors`.

A .pth is a pickle, which could run code when it is read. torch's `weights_only` reads tensors, numbers and text and
refuses the rest; this script does nothing else, imports nothing of ours, and can be run where there is no network:

    docker run --rm --network none -v $PWD:/w -w /w IMAGE python -I tools/reward_to_safetensors.py IN OUT
"""

import os
import sys
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file


def convert(source: Path, target: Path) -> None:
    """Write the tensors of `source`, or of the `model_state_dict` in it; exits with a sentence where it has none."""
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError):  # whose words advise to run what is in the file
        sys.exit(
            f"{source} is damaged or holds more than weights, and is not read further. Ask whoever wrote it for "
            f"safetensors, or for a file of its state_dict alone"
        )
    except OSError as error:
        sys.exit(f"{source} cannot be read ({error.strerror}): name the .pth")
    state = loaded.get("model_state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()) or not state:
        sys.exit(f"{source} holds no state_dict, nor one under model_state_dict: save the model's state_dict() alone")
    beside = target.with_name(f".{target.name}.writing")
    save_file({name: value.contiguous().clone() for name, value in state.items()}, beside)
    os.replace(beside, target)
    print(f"{len(state)} tensors in {target}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
