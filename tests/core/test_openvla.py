"""OpenVLA-OFT, small and random, beside references written from its documentation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from typer.testing import CliRunner

from pipelines.cli.app import app
from tests.core import openvla_checkpoints as published
from tests.core.openvla_checkpoints import ACTIONS, CHUNK, FRAME, KEY, SIDE, STATISTICS, VOCABULARY
from wovr_core.artifacts import ArtifactError, Kind, read_manifest, writing
from wovr_core.artifacts.shards import tensors_in
from wovr_core.artifacts.weights import load_weights
from wovr_core.grpo.sampling import StartPool, sample_groups
from wovr_core.grpo.update import update_policy
from wovr_core.policy.openvla.actions import ActionQuantiles
from wovr_core.policy.openvla.checkpoint import OpenVlaCheckpoint, OpenVlaConfig, OpenVlaShape, open_base
from wovr_core.policy.openvla.model import OpenVlaOft
from wovr_core.policy.openvla.prompts import Prompts
from wovr_core.policy.openvla.vision import TowerSize, lanczos, picture
from wovr_core.protocols import DreamState, LearningPolicy, Readout
from wovr_core.settings import GrpoSettings, TaskSettings
from wovr_core.steps.grpo import learner_of
from wovr_core.store.policies import kind_of, new_openvla_oft, open_cloned, open_policy, save_policy
from wovr_core.success_rule import SuccessRule
from wovr_core.trajectory import InitState, Observation

INSTRUCTIONS = ("put the bowl on the plate", "open it", "Pick up the black bowl")
TEMPERATURE = 1.6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("openvla") / "base")


def shape_of(base, **changes) -> OpenVlaShape:
    facts = {
        "checkpoint": str(base),
        "files": open_base(base, KEY).digests(),
        "unnorm_key": KEY,
        "action_dim": ACTIONS,
        "image_size": FRAME,
        "rank": 4,
        "dtype": "float32",
    }
    return OpenVlaShape(**facts | changes)


@pytest.fixture
def policy(base) -> OpenVlaOft:
    return new_openvla_oft(shape_of(base))


def observation(*instructions: str, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    size = (len(instructions), 3, FRAME, FRAME)
    frames = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return Observation(frames=frames, instructions=instructions, pose=torch.zeros(len(frames), 6))


def expected_logits(seen: Observation, **how) -> Tensor:
    """Of the reference, by the number of the bin: the lowest is the last token."""
    pictures, weights = picture(seen.frames, SIDE), published.tensors()
    each = zip(pictures, seen.instructions, strict=True)
    return torch.stack(
        [published.action_logits(weights, *one, **how).flip(-1).view(CHUNK, ACTIONS, 256) for one in each]
    )


# --------------------------------------------------------------------------------------------------- what it answers


@pytest.mark.parametrize("stop", [True, False])
def test_logits_are_those_of_the_papers_equations(base, stop):
    policy, seen = new_openvla_oft(shape_of(base, stop_token=stop)), observation(*INSTRUCTIONS)
    wanted = expected_logits(seen, stop=stop)
    assert wanted.std() > 1, "flat logits would agree whatever they are"
    torch.testing.assert_close(
        policy.logits(seen).detach(), wanted, atol=1e-4, rtol=1e-4
    )  # float32, sums of 200 tokens


def test_log_probability_and_entropy_are_of_the_last_256_tokens_alone(policy):
    """By RLinf's recipe: -inf outside of them, divided by the temperature, minus cross entropy; in float32."""
    seen, generator = observation(*INSTRUCTIONS), torch.Generator().manual_seed(1)
    chunk = policy.act(seen, temperature=TEMPERATURE, generator=generator)
    logits = torch.full((3, CHUNK, ACTIONS, VOCABULARY + 64), -math.inf)
    logits[..., VOCABULARY - 256 : VOCABULARY] = expected_logits(seen).flip(-1)
    ids = VOCABULARY - 1 - chunk.choices
    wanted = -torch.nn.functional.cross_entropy((logits / TEMPERATURE).flatten(0, 2), ids.flatten(), reduction="none")
    torch.testing.assert_close(chunk.log_prob.flatten(), wanted, atol=1e-4, rtol=1e-4)
    again = policy.log_prob(seen, chunk.choices, temperature=TEMPERATURE)
    assert torch.equal(again.detach(), chunk.log_prob), "the ratio of a policy that has not changed is 1"

    answer = policy.logits(seen).detach()
    policy.logits = lambda _: answer  # once, for all of the 256
    with torch.no_grad():
        every = torch.stack(
            [policy.log_prob(seen, torch.full_like(ids, bin), temperature=TEMPERATURE) for bin in range(256)], -1
        )
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(3, CHUNK, ACTIONS))
    entropy = torch.distributions.Categorical(logits=logits[..., VOCABULARY - 256 : VOCABULARY] / TEMPERATURE).entropy()
    torch.testing.assert_close(-(every.exp() * every).sum(-1), entropy, atol=1e-4, rtol=1e-4)


def test_tokens_are_drawn_as_likely_as_they_are(policy):
    """10,000 draws of 56 numbers: of each bin as many as its probability says, by chi-square."""
    seen = observation("open it")
    logits = policy.logits(seen)[0, 0, 0].detach() / TEMPERATURE
    many = Observation(
        frames=seen.frames.expand(50, -1, -1, -1), instructions=("open it",) * 50, pose=torch.zeros(50, 6)
    )
    policy.logits = lambda _: (logits * TEMPERATURE).expand(50, CHUNK, ACTIONS, 256)  # the same for every number
    generator = torch.Generator().manual_seed(2)
    drawn = torch.cat([policy.act(many, temperature=TEMPERATURE, generator=generator).choices for _ in range(4)])
    n, p = drawn.numel(), logits.softmax(-1)
    often = p * n > 10  # where chi-square holds
    found = torch.bincount(drawn.flatten(), minlength=256)
    score = ((found - n * p).square() / (n * p))[often].sum()
    assert abs(score - often.sum()) < 5 * (2 * often.sum()).sqrt()


def test_temperature_nought_takes_the_likeliest(policy):
    seen = observation(*INSTRUCTIONS)
    chunk = policy.act(seen, temperature=0, generator=torch.Generator())
    assert torch.equal(chunk.choices, expected_logits(seen).argmax(-1))


def test_a_batch_of_mixed_prompts_is_each_by_itself(policy):
    seen = observation(*INSTRUCTIONS)
    together = policy.logits(seen).detach()
    for i, instruction in enumerate(INSTRUCTIONS):
        alone = Observation(frames=seen.frames[i : i + 1], instructions=(instruction,), pose=seen.pose[i : i + 1])
        torch.testing.assert_close(policy.logits(alone)[0].detach(), together[i], atol=1e-4, rtol=1e-4)


def test_what_stands_in_the_paddings_place_is_no_matter(policy):
    seen = observation(*INSTRUCTIONS)
    before = policy.logits(seen).detach()
    policy.prompts.padding = 7
    assert torch.equal(policy.logits(seen).detach(), before)


def test_gradients_with_layers_recomputed_are_those_without(policy):
    """A hundredth of the memory, and no other learning."""
    seen, tokens = observation("open it"), torch.randint(0, 256, (1, CHUNK, ACTIONS))

    def gradients() -> list[Tensor]:
        loss = policy.log_prob(seen, tokens, temperature=TEMPERATURE).sum()
        return list(torch.autograd.grad(loss, policy.learns()))

    recomputed = gradients()
    assert sum(float(one.abs().sum()) for one in recomputed) > 0
    policy.language_model.activation_checkpointing_disable()
    for one, other in zip(recomputed, gradients(), strict=True):
        torch.testing.assert_close(one, other)


# --------------------------------------------------------------------------------------------------- what it is shown


def test_prompts_are_padded_after_their_first_token(base):
    prompts = Prompts.open(base, vocabulary=VOCABULARY, padding=VOCABULARY)
    ids, real = prompts.batch(INSTRUCTIONS)
    longest = max(len(published.prompt_ids(instruction)) for instruction in INSTRUCTIONS)
    for row, mask, instruction in zip(ids, real, INSTRUCTIONS, strict=True):
        wanted = published.prompt_ids(instruction)
        fill = longest - len(wanted)
        assert row.tolist() == [wanted[0], *[VOCABULARY] * fill, *wanted[1:]]
        assert mask.tolist() == [True, *[False] * fill, *[True] * (len(wanted) - 1)]
    assert ids[:, -1].tolist() == [Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id("▁")] * 3


@pytest.mark.parametrize("before", [32, 256, 20])
def test_lanczos_is_pillows(before):
    after, generator = 28 if before < 256 else 224, np.random.default_rng(0)
    image = generator.integers(0, 256, (before, before), dtype=np.uint8)
    wanted = Image.fromarray(image.astype(np.float32)).resize((after, after), Image.Resampling.LANCZOS)
    weight = lanczos(before, after)
    ours = weight @ torch.from_numpy(image).float() @ weight.T
    np.testing.assert_allclose(ours.numpy(), np.asarray(wanted), atol=1e-3)  # of 255, in float32


def test_the_middle_is_cropped_as_tensorflow_crops():
    frames = observation("x").frames[..., :SIDE, :SIDE]
    ours = picture(frames, SIDE, "upright")[0].permute(1, 2, 0).double().numpy() * 255
    wanted = published.crop_and_resize(frames[0].permute(1, 2, 0).double().numpy())
    off = np.abs(ours - np.floor(wanted / 255 * 255.5))
    assert off.max() < 1.001 and (off > 0.5).mean() < 0.01  # where float32 falls on the other side of an integer


def test_pictures_are_turned_as_the_training_data_were():
    """LIBERO's renderer is upside down and OpenVLA turns that by 180 degrees: left and right of ours are exchanged."""
    rendered = observation("x").frames
    ours = rendered.flip(-2)  # upright
    assert torch.equal(picture(ours, SIDE, "openvla"), picture(rendered.flip(-1).flip(-2), SIDE, "upright"))
    assert torch.equal(picture(ours, SIDE, "libero"), picture(rendered, SIDE, "upright"))


def test_it_looks_through_the_first_camera_alone():
    frames = observation("x").frames
    beside = torch.cat([frames, torch.zeros_like(frames)], -1)
    assert torch.equal(picture(beside, SIDE), picture(frames, SIDE))


# --------------------------------------------------------------------------------------------------- what it does


def test_tokens_mean_what_openvla_says():
    """id to bin 32000 - id - 1, clipped to 255 centres, un-normalised where masked; the gripper 1 - 2 round(g)."""
    statistics = ActionQuantiles(**STATISTICS)
    ids = np.arange(31744, 32000)[:, None].repeat(ACTIONS, 1)
    bins = np.linspace(-1, 1, 256)
    centres = (bins[:-1] + bins[1:]) / 2
    unit = centres[np.clip(32000 - ids - 1, 0, 254)]
    low, high = np.array(STATISTICS["q01"]), np.array(STATISTICS["q99"])
    wanted = np.where(STATISTICS["mask"], 0.5 * (unit + 1) * (high - low + 1e-8) + low, unit)
    wanted[:, -1] = -np.sign(2 * wanted[:, -1] - 1)
    ours = statistics.from_tokens(torch.from_numpy(31999 - ids))
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-6)


def test_tokens_of_the_actions_of_tokens_are_those_tokens():
    statistics = ActionQuantiles(**STATISTICS)
    tokens = torch.arange(255)[:, None].repeat(1, ACTIONS)
    again = statistics.to_tokens(statistics.from_tokens(tokens))
    assert torch.equal(again[:, :-1], tokens[:, :-1])
    assert torch.equal(statistics.from_tokens(again), statistics.from_tokens(tokens)), "the gripper has two sides"
    assert torch.equal(
        statistics.from_tokens(torch.tensor([[255] * 7])), statistics.from_tokens(torch.tensor([[254] * 7]))
    )


def test_a_mirror_image_has_the_actions_of_one(policy):
    signs, tokens = torch.tensor([-1.0, 1, 1, 1, 1, 1, 1]), torch.randint(0, 255, (2, CHUNK, ACTIONS))
    actions, images = policy.statistics.from_tokens(tokens), policy.mirrored(tokens, signs)
    assert (policy.statistics.from_tokens(images) - actions * signs).abs().max() < 1 / 255 + 1e-6


# --------------------------------------------------------------------------------------------------- what it is


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    """7,541,237,184 weights: the 15,082,474,368 bytes in bfloat16 that openvla-7b's index counts."""
    names = published.names(published.PUBLISHED)
    assert sum(math.prod(shape) for shape in names.values()) == 7_541_237_184
    towers = []
    for prefix in ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer."):
        shapes = {name.removeprefix(prefix): shape for name, shape in names.items() if name.startswith(prefix)}
        towers.append(TowerSize.of(shapes))
        names = {name: s for name, s in names.items() if not towers[-1].is_unused(name.partition(prefix)[2] or "-")}
    config = OpenVlaConfig.model_validate(published.config(published.PUBLISHED))
    assert config.vocabulary == 32_000

    base = OpenVlaCheckpoint(
        folder=Path("x"),
        tensors={},
        config=config,
        towers=(towers[0], towers[1]),
        statistics=ActionQuantiles(**STATISTICS),
    )
    shape = OpenVlaShape(checkpoint="x", files={"x": "x"}, unnorm_key=KEY, action_dim=7, image_size=256)
    with torch.device("meta"):
        model = OpenVlaOft(shape, base, Prompts(published.tokenizer(), padding=32_000))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == names
    assert model.vision_backbone.side == 224


def test_an_artifact_holds_adapters_and_refers_to_the_rest(base, policy, tmp_path):
    for adapter in policy.learns():
        adapter.data += 0.1
    with writing(tmp_path / "policy", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, policy)
    assert kind_of(tmp_path / "policy") == "openvla_oft"
    held = load_weights(tmp_path / "policy", "policy")
    assert all(".lora_" in name for name in held) and len(held) == 2 * 7 * 2, "two of each linear layer of Llama's two"
    again, seen = open_policy(tmp_path / "policy"), observation(*INSTRUCTIONS)
    assert isinstance(again, LearningPolicy)
    assert torch.equal(again.logits(seen), policy.logits(seen))
    assert not torch.equal(again.logits(seen), new_openvla_oft(shape_of(base)).logits(seen))
    with pytest.raises(
        ArtifactError, match=r"of the kind openvla_oft, which is not cloned here: set grpo\.cotrain_steps"
    ):
        open_cloned(tmp_path / "policy")


def test_adapters_are_finer_than_a_base_in_bfloat16(base):
    """A step of 2e-5 beside a weight of 0.1 is none in bfloat16."""
    policy = new_openvla_oft(shape_of(base, dtype="bfloat16"))
    assert {weight.dtype for weight in policy.learns()} == {torch.float32}
    assert policy.projector.fc1.weight.dtype == torch.bfloat16
    seen = observation(*INSTRUCTIONS)
    logits = policy.logits(seen)
    assert logits.dtype == torch.float32
    # three digits: bfloat16 has eight bits, and these logits reach 20
    assert (logits - expected_logits(seen)).abs().mean() < 0.1 * expected_logits(seen).std()
    policy.log_prob(seen, torch.zeros(3, CHUNK, ACTIONS, dtype=torch.long), temperature=1.0).sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in policy.learns())


# --------------------------------------------------------------------------------------------------- how it learns


class Bandit:
    """A dream of one chunk, which succeeds where its first number is, on the whole, large."""

    success_rule = SuccessRule(threshold=0.5, stride=4, hysteresis=2)
    detector_threshold = None

    def begin(self, starts):
        n = len(starts)
        latent = torch.zeros(n, 1, 1, 1)
        future, actions = torch.zeros(n, 1, 0, 1, 1), torch.zeros(n, 4, ACTIONS)
        pose = torch.zeros(n, 5, 6)
        return DreamState(reference=latent, memory=latent, before=latent, future=future, actions=actions, pose=pose)

    def imagine(self, state, actions, *, starts, frames, generator):
        won = (actions[:, :, 0].mean(1) > 0.1).float()[:, None].expand(-1, len(frames))
        seen = torch.stack([start.reference for start in starts])[:, None].expand(-1, len(frames), -1, -1, -1)
        return state, Readout(frames=seen, success=won, score=None)


CFG = GrpoSettings(
    num_groups=4,
    group_size=12,
    informative=(0.0, 1.0),
    mirror=False,
    epochs=2,
    minibatch=32,
    learning_rate=2e-2,
    warmup=1,
    temperature=TEMPERATURE,
    advantage="standardised",
    snapshot_every=1,
)


def a_pool() -> StartPool:
    frame = observation("x").frames[0]
    start = InitState(
        instruction="pick up the bowl",
        reference=frame,
        memory=frame.expand(4, -1, -1, -1),
        actions=torch.zeros(4, ACTIONS),
        pose=torch.zeros(5, 6),
        steps_left=CHUNK,
        episode=0,
        step=0,
        rule="initial",
    )
    return StartPool([start], [])


def test_grpo_teaches_its_adapters_and_leaves_the_base(policy):
    """The steps that every policy takes, unchanged."""
    base = {name: value.clone() for name, value in policy.state_dict().items() if ".lora_" not in name}
    optimiser = torch.optim.Adam(policy.learns(), lr=CFG.learning_rate)
    generator, rates = torch.Generator().manual_seed(0), []
    for _ in range(10):
        batch = sample_groups(policy, Bandit(), a_pool(), CFG, generator=generator)
        rates.append(batch.success)
        update_policy(policy, optimiser, batch.rollouts, batch.advantages, CFG, generator=generator)
    before, after = np.mean(rates[:3]), np.mean(rates[-3:])
    assert after > before + 0.3, rates  # 144 trials each: five standard errors
    assert all(torch.equal(policy.state_dict()[name], value) for name, value in base.items())


def test_one_that_was_killed_goes_on_from_its_adapters(base, tmp_path):
    """Snapshot and checkpoint hold what learns, and going on from them comes to the same as never having stopped."""
    ends = []
    for name, counts in (("whole", (2,)), ("killed", (1, 2))):
        folder = tmp_path / name
        folder.mkdir()
        for count in counts:
            actor = new_openvla_oft(shape_of(base))
            learner = learner_of(CFG, TaskSettings(), actor, Bandit(), a_pool(), None)
            learner.learn(count, folder, None)
        assert load_weights(folder, "snapshot-0001").keys() == actor.saved().keys()
        ends.append(actor.saved())
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())
    assert (tmp_path / "killed/checkpoint.safetensors").stat().st_size < 0.5 * sum(
        file.stat().st_size for file in base.glob("*.safetensors")
    ), "adapters and their moments, at three times their size"


# --------------------------------------------------------------------------------------------------- what is refused


def edited(name, **changes):
    def edit(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def without_a_tensor(folder):
    index = folder / "model.safetensors.index.json"
    name, file = "projector.fc3.bias", None
    weights = json.loads(index.read_text())
    file = weights["weight_map"].pop(name)
    index.write_text(json.dumps(weights))
    found = {n: t for n, t in published.tensors().items() if weights["weight_map"].get(n) == file}
    published.save_file(found, folder / file)


def another_tokenizer(folder):
    made = published.tokenizer()
    made.normalizer = published.normalizers.Replace(" ", "")
    made.save(str(folder / "tokenizer.json"))


def a_short_tokenizer(folder):
    letters = {letter: i for i, letter in enumerate("ab▁")}
    Tokenizer(published.models.BPE(letters, [])).save(str(folder / "tokenizer.json"))


REFUSED = {
    "an L1-regression head": (
        lambda folder: (folder / "action_head--150000_checkpoint.pt").touch(),
        "has action_head--150000_checkpoint.pt, an L1-regression or diffusion head, whose actions have no probabilit",
    ),
    "a diffusion head": (
        lambda folder: (folder / "noisy_action_projector--9_checkpoint.pt").touch(),
        "a diffusion head, whose actions have no probabilities: take a checkpoint that decides by tokens",
    ),
    "a projector of the arm's pose": (
        lambda folder: (folder / "proprio_projector--150000_checkpoint.pt").touch(),
        "an input for the arm's own pose, which this policy does not read",
    ),
    "FiLM": (lambda folder: (folder / "vision_backbone--9_checkpoint.pt").touch(), "a vision backbone with FiLM"),
    "no statistics of that key": (
        lambda folder: (folder / "dataset_statistics.json").unlink(),
        "no statistics 'libero_spatial_no_noops', by which actions would be scaled: its unnorm_key is one of bridge_or",
    ),
    "statistics without bounds": (
        edited("dataset_statistics.json", **{KEY: {"action": {"mean": [0.0]}}}),
        "statistics 'libero_spatial_no_noops' have no 'q01' of actions",
    ),
    "bounds the wrong way round": (
        edited(
            "dataset_statistics.json", **{KEY: {"action": STATISTICS | {"q01": STATISTICS["q99"], "q99": [0.0] * 7}}}
        ),
        "q01 lies above q99",
    ),
    "another model": (edited("config.json", model_type="llama"), "model_type is 'llama'"),
    "other bins": (edited("config.json", n_action_bins=512), "n_action_bins 512, but OpenVLA-OFT has 256"),
    "one vision tower": (
        edited("config.json", timm_model_ids=["vit_so400m_patch14_siglip_224"] * 2),
        "the vision tower vit_so400m_patch14_siglip_224, but OpenVLA-OFT sees with DINOv2 and then SigLIP",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "there is no config.json in"),
    "a tokenizer of other words": (
        a_short_tokenizer,
        "knows 3 tokens, but the model's actions are the last 256 of 320",
    ),
    "a tokenizer without spaces": (another_tokenizer, "of the prompt, but the model learnt it from 1 to 3, a space"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "is no tokenizer"),
    "a tensor too few": (without_a_tensor, "does not fit OpenVLA-OFT, as its config.json says: it lacks projector.fc3"),
    "a Llama of other sizes": (
        edited("config.json", text_config=published.config(published.SMALL)["text_config"] | {"num_hidden_layers": 3}),
        "it lacks language_model.model.layers.2",
    ),
}


@pytest.mark.parametrize("edit, why", REFUSED.values(), ids=REFUSED)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, monkeypatch, edit, why):
    folder = published.write(tmp_path / "base")
    edit(folder)
    monkeypatch.setattr("wovr_core.policy.openvla.model.read_into", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(ArtifactError) as error:
        new_openvla_oft(shape_of(folder))
    assert why in str(error.value), str(error.value)


def test_a_base_that_has_changed_since_is_refused(base, tmp_path):
    shape = shape_of(base)
    other = published.write(tmp_path / "other", seed=1)
    with pytest.raises(
        ArtifactError, match=r"is not the checkpoint that the adapters were learnt on: model-00001-of-0"
    ):
        new_openvla_oft(shape.model_copy(update={"checkpoint": str(other)}))


def test_the_known_trap_of_causal_attention_is_found(policy, monkeypatch):
    """Where transformers does not take the mask, as other versions did not: logits are then causal, and wrong."""
    whole = policy.language_model.model.forward
    monkeypatch.setattr(policy.language_model.model, "forward", lambda **how: whole(**how | {"attention_mask": None}))
    seen = observation("open it")
    torch.testing.assert_close(policy.logits(seen).detach(), expected_logits(seen, causal=True), atol=1e-4, rtol=1e-4)
    with pytest.raises(ArtifactError, match="the known trap of causal attention"):
        policy.check_attention()


def test_a_checkpoint_is_imported_for_its_task(base, tmp_path):
    where = ["import", "policy", str(base), "--out", str(tmp_path / "oft"), "--unnorm-key", KEY]
    made = CliRunner().invoke(app, [*where, "--rank", "2", "--set", f"task.image_size={FRAME}"])
    assert made.exit_code == 0, made.output
    task = read_manifest(tmp_path / "oft", Kind.POLICY).branch("task", TaskSettings, tmp_path)
    assert (task.environment, task.image_size, task.cameras) == ("libero", FRAME, ("agentview",))
    policy, seen = open_policy(tmp_path / "oft", task), observation(*INSTRUCTIONS)
    assert policy.shape == shape_of(base, rank=2, dtype="bfloat16")
    assert policy.act(seen, temperature=1.0, generator=torch.Generator()).actions.shape == (3, CHUNK, ACTIONS)
    with pytest.raises(ArtifactError, match=f"has image_size {FRAME}, but the task"):
        open_policy(tmp_path / "oft", task.model_copy(update={"image_size": 64}))


def test_what_cannot_be_imported_leaves_nothing_behind(base, tmp_path):
    where = ["import", "policy", str(base), "--out", str(tmp_path / "oft"), "--unnorm-key"]
    refused = CliRunner().invoke(app, [*where, "libero_goal"])
    assert refused.exit_code == 1 and "no statistics 'libero_goal'" in refused.stderr, refused.output
    refused = CliRunner().invoke(app, [*where, KEY, "--set", "task.environment=tabletop"])
    assert refused.exit_code == 1 and "has action_dim 7, but the task (tabletop) has 3" in refused.stderr
    assert not (tmp_path / "oft").exists()


def test_nothing_beside_the_published_names_is_in_the_small_one(base):
    assert set(tensors_in(base)) == set(published.names(published.SMALL))
