"""The training loop: what a loss that goes wrong, or a kill, may cost."""

import pytest
import torch
from torch import nn

from wovr_core.training import checkpoint as on_disk
from wovr_core.training.checkpoint import load_checkpoint, save_checkpoint, scratch
from wovr_core.training.loop import TrainingError, tell_loss, train
from wovr_core.training.precision import autocast, computed_in


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def fit(model: nn.Module, loss, generator, **kwargs) -> list[float]:
    return train(model, loss, name="toy", steps=6, learning_rate=0.1, generator=generator, **kwargs)


@pytest.mark.parametrize(
    ("capability", "asked", "computed"),
    [("AVX2", "bfloat16", torch.float32), ("AVX512", "bfloat16", torch.bfloat16), ("AVX512", "float32", torch.float32)],
)
def test_bfloat16_is_computed_where_that_saves_time(capability, asked, computed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    assert computed_in(asked, cpu) is computed
    with autocast(asked, cpu):
        assert (x @ x).dtype is computed
    assert computed_in("bfloat16", torch.device("meta")) is torch.bfloat16, "a CPU's matter"


def test_training_lowers_the_loss(model, generator):
    x = torch.randn(64, 3, generator=generator)
    history = train(
        model,
        lambda step: (model(x) - x.sum(1, keepdim=True)).square().mean(),
        name="toy",
        steps=150,
        learning_rate=0.1,
        generator=generator,
        weight_decay=0.0,
    )
    assert history[-1] < 0.05 * history[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once_and_says_what_to_do(model, generator, bad):
    before = model.weight.detach().clone()

    with pytest.raises(
        TrainingError, match=r"toy: the loss is (nan|-?inf).*step 0 of 6.*Lower the learning rate \(0.1\)"
    ):
        fit(model, lambda step: model.weight.sum() * bad, generator)
    assert torch.equal(model.weight, before)


def test_a_gradient_that_is_not_finite_stops_before_it_is_followed(model, generator):
    with pytest.raises(TrainingError, match="gradient"):
        fit(model, lambda step: (0 * model.weight.sum()).sqrt() + 1, generator)
    assert torch.isfinite(model.weight).all()


def test_no_checkpoint_holds_the_bad_step(model, generator, tmp_path):
    def loss(step):
        return model.weight.square().sum() * (float("nan") if step == 4 else 1)

    with pytest.raises(TrainingError):
        fit(model, loss, generator, checkpoint=tmp_path / "c.safetensors", checkpoint_every=1)
    optimiser = torch.optim.AdamW(model.parameters())
    parameters = list(model.parameters())
    average = [torch.zeros_like(p) for p in parameters]
    assert load_checkpoint(tmp_path / "c.safetensors", parameters, average, optimiser, generator) == 4
    assert all(torch.isfinite(p).all() for p in parameters)


def test_the_average_of_the_weights_is_what_remains(model, generator):
    def loss(step):
        return (model(torch.ones(1, 3)) - (1 if step % 2 else -1)).square().sum()

    start = {name: value.clone() for name, value in model.state_dict().items()}
    last, mean = [], []
    for ema, end in ((0.0, last), (0.9, mean)):
        model.load_state_dict(start)
        fit(model, loss, generator, ema=ema)
        end.append(model.weight.detach().clone())
    assert not torch.equal(last[0], mean[0])


def state(model: nn.Module):
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return parameters, [p.detach().clone() for p in parameters], optimiser


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(model, generator, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    parameters, average, optimiser = state(model)
    save_checkpoint(path, parameters, average, optimiser, generator, 3)

    def killed_half_way(tensors, file):
        file.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(on_disk, "save_file", killed_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, parameters, average, optimiser, generator, 4)
    assert load_checkpoint(path, parameters, average, optimiser, generator) == 3


def test_without_a_checkpoint_training_begins_at_the_beginning(model, generator, tmp_path):
    assert load_checkpoint(tmp_path / "none.safetensors", *state(model), generator) == 0


def test_scratch_survives_an_error_and_is_gone_after_success(tmp_path, monkeypatch):
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), scratch("world model", 3) as first:
        (first / "progress").write_text("half")
        raise KeyboardInterrupt
    with scratch("world model", 3) as again:
        assert (again / "progress").read_text() == "half", "the same key goes on where it stopped"
        with scratch("world model", 4) as other:
            assert not (other / "progress").exists(), "another key begins anew"
    assert not list(tmp_path.iterdir())


class Notes(list):
    """A tracker that writes down what it is told."""

    def log(self, metrics, *, step):
        self.append((metrics, step))


def test_a_tracker_is_told_the_mean_loss_of_every_so_many_steps():
    notes = Notes()
    on_step = tell_loss(notes, "world_model/loss", every=2)
    for step, loss in enumerate([4.0, 2.0, 1.0, 3.0, 5.0]):
        on_step(step, loss)
    assert notes == [({"world_model/loss": 3.0}, 2), ({"world_model/loss": 2.0}, 4)]


def test_without_a_tracker_nobody_is_told():
    assert tell_loss(None, "world_model/loss") is None
