"""What every test shares: quiet threads, and small things of the real kind."""

from collections.abc import Iterator

import pytest
import torch

from tests.shapes import check_shapes

check_shapes()  # before the first import of wovr_core

from pipelines.stack.stack import SERVICES, Stack
from wovr_core.architecture import ArchitectureSettings
from wovr_core.settings import WorldModelSettings
from wovr_core.world_model.autoencoder import PatchAutoencoder
from wovr_core.world_model.model import DiffusionWorldModel

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: else some process has nothing left to do at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_world_model() -> DiffusionWorldModel:
    """The real classes, small, with random weights that no longer sit at their zero initialisation."""
    torch.manual_seed(0)
    architecture = ArchitectureSettings(latent_channels=8, heads=2, head_dim=12, layers=2, ffn_dim=32, freq_dim=16)
    cfg = WorldModelSettings(architecture=architecture, pretrained="none", rollout_dtype="float32")
    model = DiffusionWorldModel(cfg, PatchAutoencoder(channels=8, width=8, fine=8), action_dim=3)
    for parameter in model.transformer.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Real servers for the tests of this process; a test starts those it wants and may leave them running."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    yield stack
    stack.down(["triton"])  # politely: it shares memory with its models
    for service in SERVICES:
        stack.kill(service)
