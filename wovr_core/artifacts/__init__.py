"""What lies on disk between two steps."""

from wovr_core.artifacts.episodes import read_episodes, write_episodes
from wovr_core.artifacts.gate import check_episodes_fit
from wovr_core.artifacts.manifest import ArtifactError, Draft, Kind, Manifest, read_manifest, writing
from wovr_core.artifacts.weights import load_json, load_table, load_weights, save_json, save_table, save_weights

__all__ = [
    "ArtifactError",
    "Draft",
    "Kind",
    "Manifest",
    "check_episodes_fit",
    "load_json",
    "load_table",
    "load_weights",
    "read_episodes",
    "read_manifest",
    "save_json",
    "save_table",
    "save_weights",
    "write_episodes",
    "writing",
]
