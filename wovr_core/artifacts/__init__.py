"""What lies on disk between two steps."""

from wovr_core.artifacts.episodes import read_episodes, write_episodes
from wovr_core.artifacts.gate import check_episodes_fit
from wovr_core.artifacts.manifest import ArtifactError, Draft, Facts, Kind, Manifest, digest_at, read_manifest, writing
from wovr_core.artifacts.weights import (
    load_json,
    load_lines,
    load_table,
    load_weights,
    module_of,
    save_json,
    save_table,
    save_weights,
)

__all__ = ["check_episodes_fit", "read_episodes", "write_episodes"]
__all__ += ["ArtifactError", "Draft", "Facts", "Kind", "Manifest", "digest_at", "read_manifest", "writing"]
__all__ += ["load_json", "load_lines", "load_table", "load_weights", "module_of"]
__all__ += ["save_json", "save_table", "save_weights"]
