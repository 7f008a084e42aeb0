"""The training loop: what a loss that goes wrong, or a kill, may cost."""

import pytest
import torch
from torch import nn

from tests.core.test_devices import diffusion, episodes, next_frame
from wovr_core.settings import Settings, SettingsError
from wovr_core.steps.world_model import fit_world_model
from wovr_core.training import checkpoint as on_disk
from wovr_core.training import lora
from wovr_core.training.checkpoint import load_checkpoint, save_checkpoint, scratch
from wovr_core.training.loop import TrainingError, tell_loss, train
from wovr_core.training.precision import autocast, computed_in
from wovr_core.training.validation import Validation
from wovr_core.world_model.windows import EpisodeBatch


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
    assert load_checkpoint(tmp_path / "c.safetensors", parameters, (), optimiser, generator) == 4
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


# ------------------------------------------------------------------------------------ what is too large at once


def test_parts_of_a_batch_draw_and_teach_what_the_batch_does():
    model, batch = diffusion(), EpisodeBatch.of(episodes())
    model.cfg = model.cfg.model_copy(update={"batch": 4})
    losses, gradients, chances = [], [], []
    for parts in ([slice(0, 4)], [slice(0, 2), slice(2, 4)]):
        g = torch.Generator().manual_seed(5)
        lesson = model.lessons(batch, steps=2, parts=parts, generator=g)
        model.zero_grad()
        value = [lesson(k) / len(parts) for k in range(2 * len(parts))]
        sum(value).backward()
        losses.append(sum(value).item())
        gradients.append([p.grad.clone() for p in model.transformer.parameters() if p.grad is not None])
        chances.append(g.get_state())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert all(torch.allclose(whole, parts, atol=1e-6) for whole, parts in zip(*gradients, strict=True))
    assert torch.equal(*chances)


def test_a_batch_is_a_number_of_equal_parts():
    with pytest.raises(SettingsError, match=r"batch is 32, which world_model.accumulate 5 does not divide: .* of 35"):
        Settings.parse({"world_model": {"batch": 32, "accumulate": 5}})


def test_a_model_of_frames_is_small_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path))
    model = next_frame()
    model.cfg = model.cfg.model_copy(update={"lora": 4})
    with pytest.raises(TrainingError, match=r"refit: a next-frame model .* leave out world_model.accumulate"):
        fit_world_model(model, EpisodeBatch.of(episodes()), steps=1, name="refit", seed=0, data=[], held_out=episodes())


def test_adapters_learn_and_the_weights_beside_them_stay(tmp_path, monkeypatch):
    """Then they are merged: the same layers, names and answers as with adapters."""
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path))
    model, merged = diffusion(), []
    model.cfg = model.cfg.model_copy(update={"lora": 2, "learning_rate": 1e-2})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(1, 5, 24)
    merge = lora.merge

    def and_compare(module):
        adapted, layer = dict(module.named_parameters()), module.backbone.blocks[0].attn1.to_q
        assert all(
            torch.equal(before[f"transformer.{n}"], adapted[n])
            for n in adapted
            if n.startswith("backbone") and "lora" not in n
        )
        answer = layer(x)
        merge(module)
        merged.append((answer, layer(x), sum("lora" in name for name in adapted)))

    monkeypatch.setattr(lora, "merge", and_compare)
    fit_world_model(model, EpisodeBatch.of(episodes()), steps=4, name="small", seed=0, data=[], held_out=episodes())
    (adapted, plain, adapters), after = merged[0], model.state_dict()
    assert torch.allclose(adapted, plain, atol=1e-6) and adapters == 2 * 10, "ten layers to a block"
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "transformer.backbone.blocks.0.attn1.to_q.weight" in changed, "the adapters' part"
    assert "transformer.action_tokens.net.0.weight" in changed, "how actions enter is learnt as a whole"
    assert "transformer.backbone.patch_embedding.weight" not in changed
    assert all(parameter.requires_grad for parameter in model.transformer.parameters())


def test_a_checkpoint_holds_what_learns(generator, tmp_path):
    sizes = []
    for rank in (0, 2):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        if rank:
            lora.adapt(model, [model], rank=rank, generator=generator)
        path = tmp_path / f"{rank}.safetensors"
        fit(
            model,
            lambda step, model=model: model(torch.ones(1, 64)).square().sum(),
            generator,
            checkpoint=path,
            checkpoint_every=1,
        )
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.2 * sizes[0]


PSNR = {2: 20.0, 4: 23.0, 6: 22.0, 8: 21.0, 10: 22.9, 12: 30.0}


def watch(model, best, weights):
    def score(done):
        weights[done] = model.weight.detach().clone()
        return PSNR[done]

    return Validation(score, every=2, best_at=best)


def pull(model, stop_at=None):
    def loss(step):
        if step == stop_at:
            raise KeyboardInterrupt
        return (model.weight - torch.tensor([1.0, 2.0, 3.0])).square().sum() * (1 + step % 3)

    return loss


def follow(model, generator, folder, *, validated=True, stop_at=None):
    """Twelve steps, watched; the losses, and the weights at each measurement."""
    weights = {}
    losses = train(
        model,
        pull(model, stop_at),
        name="toy",
        steps=12,
        learning_rate=0.1,
        ema=0.9,
        generator=generator,
        checkpoint=folder / "c.safetensors",
        checkpoint_every=2,
        validation=watch(model, folder / "best.safetensors", weights) if validated else None,
    )
    return losses, weights


def test_training_ends_when_dreams_get_no_better_and_the_best_weights_remain(model, generator, tmp_path):
    start = model.weight.detach().clone()
    losses, weights = follow(model, generator, tmp_path / "one")
    assert len(losses) == 10, "three measurements after the best"
    assert torch.equal(model.weight, weights[4]) and not torch.equal(weights[4], weights[10])

    model.weight.data = start.clone()
    with pytest.raises(KeyboardInterrupt):
        follow(model, generator, tmp_path / "two", stop_at=7)
    model.weight.data = start.clone()
    rest, again = follow(model, generator, tmp_path / "two")
    assert rest == losses[6:] and torch.equal(again[10], weights[10])
    assert torch.equal(model.weight, weights[4]), "also when it was stopped after them"

    model.weight.data = start.clone()
    alone, _ = follow(model, generator, tmp_path / "three", validated=False)
    assert alone[:10] == losses, "measuring changes nothing"


def test_a_world_model_is_measured_by_its_dreams_while_it_learns(tmp_path, monkeypatch):
    monkeypatch.setenv("WOVR_SCRATCH", str(tmp_path))
    model, notes = diffusion(), Notes()
    model.cfg = model.cfg.model_copy(update={"validate_every": 2, "average_on": "none"})
    found = fit_world_model(
        model, EpisodeBatch.of(episodes()), steps=5, name="small", seed=0, data=[], held_out=episodes(), tracker=notes
    )["validation"]
    scores = dict(found["scores"])
    assert [*scores] == [2, 4, 5] and scores[found["best_step"]] == found["psnr"] == max(scores.values())
    assert 0 < found["psnr"] < 60
    assert notes[0][1] == 2 and notes[0][0].keys() == {"world_model/psnr_8", "world_model/psnr_16", "world_model/psnr"}
