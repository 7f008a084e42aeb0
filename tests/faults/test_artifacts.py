"""Artifacts whose manifests are right and whose contents are not: refused by name, before any work, whoever signed."""

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.platform.registry import promote_policy
from tests.faults.harness import FUZZ, deadline, refused, wovr
from tests.steps.conftest import SHAPE, TASK, WORLD_MODEL
from tests.steps.conftest import own_scratch as own_scratch
from tests.steps.conftest import shelf as shelf
from tests.steps.test_bad_input import GRPO, run
from tests.toys import an_episode
from wovr_core.artifacts import ArtifactError, Kind, digest_at, read_manifest, save_weights, write_episodes, writing
from wovr_core.envs.splits import Split
from wovr_core.policy.tiny_vla import TinyVLA
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import EvaluateSettings, PolicySettings, PromoteSettings
from wovr_core.steps.evaluate import evaluate_policies
from wovr_core.steps.grpo import improve_policy
from wovr_core.steps.policy import clone_base_policy
from wovr_core.steps.world_model import train_world_model
from wovr_core.store.policies import open_policy
from wovr_core.training.loop import TrainingError
from wovr_core.world_model.statistics import ActionStatistics
from wovr_core.world_model.windows import EpisodeBatch

NAN = float("nan")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
READER = {  # a step that reads it
    "policy": "grpo",
    "world_model": "reward",
    "reward": "grpo",
    "keyframes": "grpo",
    "evaluation": "judge",
    "episodes": "keyframes",
}
Change = Callable[[Path], None]


def resigned(good: Path, bad: Path, change: Change) -> Path:
    """A copy, changed, and vouched for by a manifest that is right."""
    shutil.copytree(good, bad)
    change(bad)
    manifest = bad / "manifest.json"
    tree = json.loads(manifest.read_text())
    if not isinstance(tree, dict):
        return bad
    tree.pop("digest", None)
    if isinstance(tree.get("files"), dict):
        files = [path for path in bad.rglob("*") if path.is_file() and path != manifest]
        tree["files"] = {
            str(path.relative_to(bad)): {"sha256": sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
            for path in files
        }
    tree["digest"] = sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    manifest.write_text(json.dumps(tree))
    return bad


def facts(name: str, **values: Any) -> Change:
    """Other values in a JSON file; `...` takes one away."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / f"{name}.json").read_text()) | values
        kept = {key: value for key, value in tree.items() if value is not ...}
        (folder / f"{name}.json").write_text(json.dumps(kept))

    return change


def manifest(*keys: str, value: Any) -> Change:
    """Another value in the manifest, at this path; `...` takes it away."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / "manifest.json").read_text())
        *way, last = keys
        place = tree
        for key in way:
            place = place.setdefault(key, {})
        if value is ...:
            place.pop(last, None)
        else:
            place[last] = value
        (folder / "manifest.json").write_text(json.dumps(tree))

    return change


def text(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def weights(name: str, turn: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / f"{name}.safetensors")
        turn(tensors)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")

    return change


def table(name: str, *rows: dict[str, Any]) -> Change:
    return lambda folder: pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"{name}.parquet")


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def of_its_kind(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.dtype == torch.float32 else tensor.float()


FIRST = "trunk.look.0.0.weight"
KEYFRAME = {"episode": 0, "step": 8, "rule": "gripper_event", "score": 1.0}
TRIAL = {"init_state": 3_000_000, "instruction": "a", "candidate": True, "baseline": False}
ELSEWHERE = TASK.model_dump() | {"environment": "libero", "cameras": ["agentview"]}


def enlarged(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({key: torch.full_like(value, 1e30) for key, value in tensors.items()})


def of_an_even_kernel(folder: Path) -> None:
    """A policy whose weights fit its description, and whose layers do not fit each other."""
    facts("policy", kernel=2)(folder)
    weights("policy", lambda t: t.update({"trunk.look.0.2.weight": t["trunk.look.0.2.weight"].repeat(1, 1, 2, 2)}))(
        folder
    )


BAD = {
    "a policy whose layers do not fit": ("policy", of_an_even_kernel, "cannot look at a picture"),
    "a policy that answers with NaN": ("policy", weights("policy", enlarged), "answers with NaN"),
    "a reward that answers with NaN": ("reward", weights("reward", enlarged), "answers with NaN"),
    "a reward of another environment": ("reward", manifest("settings", "task", value=ELSEWHERE), "learnt in libero"),
    "a keyframe, a hundred thousand times": ("keyframes", table("keyframes", *[KEYFRAME] * 10**5), "a keyframe twice"),
    "one state, two trials": ("evaluation", table("trials", TRIAL, TRIAL), "from one initial state several times"),
    "a trial on a state that was learnt from": (
        "evaluation",
        table("trials", TRIAL | {"init_state": 1_000_000}),
        "1000000, which is no evaluation state",
    ),
    "a champion in one trial of two": (
        "evaluation",
        table("trials", TRIAL | {"champion": True}, TRIAL | {"init_state": 3_000_001, "champion": None}),
        "trials with a champion and trials without",
    ),
    # of another robot or camera
    "a policy of seven motions": ("policy", facts("policy", action_dim=7), "action_dim 7, but the task"),
    "a policy of large pictures": ("policy", facts("policy", image_size=128), "image_size 128, but the task"),
    "a policy of longer chunks": ("policy", facts("policy", chunk=16), "chunk 16, but the task (tabletop) has 8"),
    "a policy that reads six numbers": ("policy", facts("policy", pose_dim=6), "pose_dim 6, but the task"),
    "a reward of large pictures": ("reward", facts("reward", image_size=128), "image_size 128, but the task"),
    "a world of seven motions": (
        "world_model",
        weights("world_model", lambda t: t.update({"statistics.q01": torch.zeros(7)})),
        "action_dim 7, but the task (tabletop) has 3",
    ),
    "a world of six poses": (
        "world_model",
        weights("world_model", lambda t: t.update({"statistics.reach": torch.zeros(6)})),
        "pose_dim 6, but the task (tabletop) has 2",
    ),
    "a world of large pictures": (
        "world_model",
        manifest("settings", "task", "image_size", value=128),
        "image_size 128, but the task",
    ),
    # weights
    "a tensor that is missing": ("policy", weights("policy", lambda t: t.pop(FIRST)), f"{FIRST} is missing"),
    "a tensor too many": (
        "policy",
        weights("policy", lambda t: t.update(more=torch.ones(2))),
        "more belongs to another model",
    ),
    "a tensor of another shape": (
        "policy",
        weights("policy", lambda t: t.update({FIRST: torch.ones(3)})),
        f"{FIRST} has the shape (3,), not (4,",
    ),
    "a tensor of another type": (
        "reward",
        weights("reward", lambda t: t.update({k: v.half() for k, v in t.items()})),
        "is of torch.float16",
    ),
    "a tensor that is not finite": (
        "reward",
        weights("detector", lambda t: t["local.0.bias"].fill_(NAN)),
        "local.0.bias is not finite",
    ),
    "a world without statistics": (
        "world_model",
        weights("world_model", lambda t: t.pop("statistics.q01")),
        "hold no statistics.q01",
    ),
    "statistics that are no row": (
        "world_model",
        weights("world_model", lambda t: t.update({"statistics.reach": torch.ones(2, 2)})),
        "hold no statistics.reach",
    ),
    "statistics that are not finite": (
        "world_model",
        weights("world_model", lambda t: t["statistics.pose_high"].fill_(torch.inf)),
        "statistics.pose_high is not finite",
    ),
    "weights that are gone": ("policy", gone("policy.safetensors"), "there is no policy.safetensors"),
    "weights cut short": ("policy", text("policy.safetensors", b"\x08\0\0\0\0\0\0\0{"), "is corrupted"),
    "a pointer for weights": (
        "policy",
        text("policy.safetensors", POINTER),
        "policy.safetensors is a pointer of Git LFS",
    ),
    # facts
    "a giant": ("policy", facts("policy", hidden=10**9), "(8, 72), not (1000000000, 72)"),
    "a giant world": ("world_model", facts("world_model", architecture={"layers": 10**9}), "layers"),
    "a layer too many": ("policy", facts("policy", features=5), "has the shape"),
    "a number in quotes": ("policy", facts("policy", words="8"), "policy.json: words is '8', input should be a valid"),
    "true for a number": ("policy", facts("policy", hidden=True), "policy.json: hidden is True"),
    "a key that is missing": ("policy", facts("policy", vocabulary=...), "policy.json: vocabulary, field required"),
    "a key too many": ("policy", facts("policy", layers=3), "policy.json: layers"),
    "no object": ("policy", text("policy.json", "[]"), "policy.json: is []"),
    "no JSON": ("policy", text("policy.json", "{'a': 1}"), "policy.json: invalid JSON"),
    "no letters": ("policy", text("policy.json", b"\xff\xfe\0"), "policy.json: invalid JSON"),
    "lists without end": ("policy", text("policy.json", "[" * 100_000), "policy.json: invalid JSON"),
    "a threshold that is no number": ("reward", facts("calibration", threshold=NAN), "threshold is nan"),
    "a threshold too high": ("reward", facts("calibration", threshold=1.5), "threshold is 1.5"),
    "a threshold in quotes": ("reward", facts("calibration", threshold="0.5"), "threshold is '0.5'"),
    "a dtype nobody has": ("reward", facts("calibration", dtype="fp8"), "dtype is 'fp8'"),
    "a stride that divides no chunk": ("reward", facts("calibration", stride=3), "stride is 3"),
    "a stride in quotes": ("reward", facts("calibration", stride="2"), "stride is '2'"),
    "a rule without a stride": ("reward", facts("calibration", stride=...), "stride, field required"),
    "a rule that asks no frame": ("reward", facts("calibration", hysteresis=0), "hysteresis is 0"),
    "a detector that is no number": ("reward", facts("detector", threshold=NAN), "detector.json: threshold is nan"),
    "a detector that is infinite": ("reward", text("detector.json", '{"threshold": 1e999}'), "threshold is inf"),
    # tables
    "a keyframe of no episode": ("keyframes", table("keyframes", KEYFRAME | {"episode": 99}), "step 8 of episode 99"),
    "a keyframe after the end": ("keyframes", table("keyframes", KEYFRAME | {"step": 16}), "step 16 of episode 0"),
    "a keyframe before the start": ("keyframes", table("keyframes", KEYFRAME | {"step": -8}), "0.step is -8"),
    "a keyframe in between": ("keyframes", table("keyframes", KEYFRAME | {"step": 8.5}), "0.step is 8.5"),
    "a keyframe worth nothing": ("keyframes", table("keyframes", KEYFRAME | {"score": NAN}), "0.score is nan"),
    "a keyframe of no rule": ("keyframes", table("keyframes", KEYFRAME | {"rule": None}), "0.rule is None"),
    "keyframes without a column": ("keyframes", table("keyframes", {"episode": 0, "step": 8}), "0.rule, field"),
    "keyframes of other episodes": (
        "keyframes",
        manifest("made_from", "episodes_0", value="0" * 64),
        "were mined from other episodes",
    ),
    "keyframes that are none": ("keyframes", text("keyframes.parquet", "PAR1"), "keyframes.parquet is corrupted"),
    "a trial that says no": ("evaluation", table("trials", TRIAL | {"candidate": "no"}), "0.candidate is 'no'"),
    "a trial that says one": ("evaluation", table("trials", TRIAL | {"candidate": 1}), "0.candidate is 1"),
    "a trial without an outcome": ("evaluation", table("trials", TRIAL | {"baseline": None}), "0.baseline is None"),
    "trials without a baseline": ("evaluation", table("trials", {"candidate": True}), "field required"),
    "no trials": ("evaluation", table("trials"), "holds no trials"),
    "a confidence that is certain": (
        "evaluation",
        manifest("settings", "evaluate", "confidence", value=1.0),
        "confidence is 1.0",
    ),
    "a confidence in quotes": (
        "evaluation",
        manifest("settings", "evaluate", "confidence", value="0.95"),
        "confidence is '0.95'",
    ),
    "dreams of words": (
        "evaluation",
        manifest("summary", "imagined_success", value=["much", "more"]),
        "imagined_success.0 is 'much'",
    ),
    "decisions that are none": (
        "policy",
        manifest("summary", "decisions", value=[{"rolled_back": "no"}]),
        "decisions.0",
    ),
    # manifests
    "a kind nobody knows": ("policy", manifest("kind", value="Song"), "manifest.json: kind is 'Song'"),
    "a format that is true": ("policy", manifest("format", value=True), "manifest.json: format is True"),
    "files that are a list": ("policy", manifest("files", value=[]), "manifest.json: files is []"),
    "an origin of numbers": ("policy", manifest("made_from", value={"a": 1}), "manifest.json: made_from.a is 1"),
    "settings that are a word": ("reward", manifest("settings", value="all"), "manifest.json: settings is 'all'"),
    "a summary that is missing": ("policy", manifest("summary", value=...), "manifest.json: summary, field required"),
    "a key nobody asked for": ("policy", manifest("made_by", value="me"), "manifest.json: made_by is 'me'"),
    "a summary that is not finite": ("policy", manifest("summary", "loss", value=NAN), "manifest.json is corrupted"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_vouched_for_is_still_checked(case, shelf, tmp_path):
    kind, change, words = BAD[case]
    bad = resigned(shelf / kind, tmp_path / "bad", change)
    with pytest.raises(ArtifactError) as caught, deadline(10, case):
        run(READER[kind], shelf, tmp_path / "out", **{kind: bad})
    assert words in str(caught.value)
    assert "bad" in str(caught.value), "the message names the place"
    assert {path.name for path in tmp_path.iterdir()} <= {"bad", "scratch"}


OTHERS = {"LIBERO's robot": {"actions": 7, "pose": 6}, "a larger camera": {"side": 128}, "a shorter task": {"steps": 8}}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("step", "port"),
    [
        ("world_model", "episodes"),
        ("reward", "episodes"),
        ("keyframes", "episodes"),
        ("grpo", "episodes"),
        ("pace, choose", "evolved_episodes"),
        ("pace, choose", "previous_episodes"),
        ("pace, refit", "newest"),
        ("pace, refit", "older"),
    ],
)
def test_episodes_of_another_task_are_refused_by_every_step(step, port, other, shelf, tmp_path):
    strange = {"actions": 3, "pose": 2, "side": TASK.image_size, "steps": TASK.horizon} | OTHERS[other]
    n = strange["steps"]
    one = an_episode(steps=n, success_at=4, closes=[], shade=0, init_state=Split.COLLECTION.ids(1)[0])
    one = type(one)(
        **vars(one)
        | {
            "actions": torch.zeros(n, strange["actions"]),
            "pose": torch.zeros(n + 1, strange["pose"]),
            "frames": torch.zeros(n + 1, 3, strange["side"], strange["side"], dtype=torch.uint8),
        }
    )
    with writing(tmp_path / "others", Kind.EPISODES, settings={}) as draft:
        write_episodes(draft.folder, [one], source="elsewhere", policy_digest="none")
    with pytest.raises(ArtifactError, match=r"episode 0 has .* but the task"):
        run(step, shelf, tmp_path / "out", **{port: tmp_path / "others"})


@pytest.mark.parametrize(
    ("step", "port"),
    [
        ("collect", "policy"),
        ("evaluate", "candidate"),
        ("evaluate", "baseline"),
        ("pace, choose", "evolved"),
        ("pace, choose", "previous"),
        ("pace, refit", "world_model"),
        ("reward", "world_model"),
        ("grpo", "reward"),
        ("grpo", "world_model"),
        ("grpo", "policy"),
        ("keyframes", "reward"),
    ],
)
def test_models_of_another_task_are_refused_by_every_step(step, port, shelf, tmp_path):
    if port == "world_model":
        bad = resigned(shelf / port, tmp_path / "bad", manifest("settings", "task", "image_size", value=128))
    else:
        name = "reward" if port == "reward" else "policy"
        bad = resigned(shelf / name, tmp_path / "bad", facts(name, image_size=128))
    with pytest.raises(ArtifactError, match="image_size 128, but the task"):
        run(step, shelf, tmp_path / "out", **{port: bad})


def test_snapshots_are_opened_before_anything_is_tried(shelf, tmp_path, monkeypatch):
    def never(*args: object) -> None:
        raise AssertionError("something was tried")

    monkeypatch.setattr("wovr_core.steps.evaluate.trials", never)
    bad = resigned(shelf / "policy", tmp_path / "bad", text("snapshot-0000.safetensors", b""))
    with pytest.raises(ArtifactError, match=r"snapshot-0000\.safetensors is corrupted"):
        evaluate_policies(
            EvaluateSettings(episodes=4),
            TASK,
            candidate=shelf / "policy",
            baseline=shelf / "policy",
            out=tmp_path / "out",
            snapshots=(bad,),
        )


def test_shipped_weights_that_were_not_fetched_are_named(shelf, tmp_path, monkeypatch):
    (tmp_path / "tabletop-play").mkdir()
    (tmp_path / "tabletop-play" / "weights.safetensors").write_text(POINTER)
    monkeypatch.setattr("wovr_core.store.world_models.PRETRAINED", tmp_path)
    cfg = WORLD_MODEL.model_copy(update={"pretrained": "tabletop-play"})
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is a pointer of Git LFS.*git lfs pull"):
        train_world_model(cfg, TASK, episodes=[shelf / "episodes"], out=tmp_path / "out")


@pytest.mark.parametrize("name", ["one.hdf5", "one.npy"])
def test_episodes_that_were_not_fetched_are_named(name, tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / name).write_text(POINTER)
    options = ["--out", str(tmp_path / "out"), "--steps", "48", "--pictures", "upright"]
    answer = wovr("episodes", "import", str(tmp_path / name), *options)
    refused(answer, "pointer of Git LFS", name)


def test_a_verdict_that_says_no_in_words_promotes_nothing(shelf, tmp_path):
    ports = {"policy": shelf / "policy"}
    for name, kind, made_from in (
        ("evaluation", Kind.EVALUATION, {"candidate": "policy"}),
        ("verdict", Kind.VERDICT, {"evaluation": "evaluation"}),
        ("report", Kind.REPORT, {}),
    ):
        ports[name] = tmp_path / name
        origin = {role: ports[other] for role, other in made_from.items()}
        with writing(ports[name], kind, settings={}, made_from=origin) as draft:
            draft.summary |= {"promote": "no", "reason": "held"}
    with pytest.raises(ArtifactError, match="promote is 'no', input should be a valid boolean"):
        promote_policy(PromoteSettings(), **ports)


# ------------------------------------------------------------------------------------------------------ places


def test_no_step_works_for_a_place_that_is_taken(shelf, tmp_path, monkeypatch):
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("it worked")

    for place in (
        "wovr_core.steps.collect.run_trials",
        "wovr_core.steps.policy.run_trials",
        "wovr_core.steps.evaluate.run_trials",
        "wovr_core.steps.grpo.sample_groups",
        "wovr_core.steps.keyframes.mine",
        "wovr_core.steps.reward.fit",
        "wovr_core.steps.world_model.train",
    ):
        monkeypatch.setattr(place, never)
    taken = shelf / "policy"
    for step in ("collect", "world_model", "reward", "keyframes", "grpo", "pace, refit", "evaluate", "judge"):
        with pytest.raises(ArtifactError, match="already holds a finished artifact"):
            run(step, shelf, taken)
    for out, demonstrations in ((taken, tmp_path / "new"), (tmp_path / "new", taken)):
        with pytest.raises(ArtifactError, match="already holds a finished artifact"):
            clone_base_policy(PolicySettings(demonstrations=2, steps=1), TASK, out=out, demonstrations=demonstrations)
    assert not list(tmp_path.glob("new*"))


def test_places_that_can_hold_no_artifact_are_refused_before_the_work(shelf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    shutil.copytree(shelf / "episodes", tmp_path / "episodes")
    for out, words in (
        (Path(), "is in use"),
        (Path(".."), "is in use"),
        (Path("/"), "is in use"),
        (Path("/proc"), "is in use"),
        (tmp_path / "file" / "out", "nothing can be written to"),
        (Path("/proc/nowhere/out"), "nothing can be written to"),
        (tmp_path / "episodes" / "out", "lies inside of the artifact"),
    ):
        with pytest.raises(ArtifactError, match=words):
            run("world_model", shelf, out, episodes=tmp_path / "episodes")
    read_manifest(tmp_path / "episodes", Kind.EPISODES)


def test_what_is_no_plain_file_is_not_waited_for(shelf, tmp_path):
    shutil.copytree(shelf / "policy", tmp_path / "bad")
    os.mkfifo(tmp_path / "bad" / "pipe")
    with pytest.raises(ArtifactError, match="pipe is no plain file"), deadline(5, "a pipe"):
        open_policy(tmp_path / "bad")


# ------------------------------------------------------------------------------------------------------ what is written


def test_nothing_that_is_not_finite_is_published(tmp_path):
    with (
        pytest.raises(ArtifactError, match=r"weights\.safetensors is broken: b is not finite.*nothing was written"),
        writing(tmp_path / "out", Kind.POLICY, settings={}) as draft,
    ):
        save_weights(draft.folder, "weights", {"a": torch.ones(2), "b": torch.tensor([1.0, NAN])})
    assert not list(tmp_path.iterdir())


def test_a_motion_that_is_never_used_reaches_nowhere():
    actions = torch.zeros(2, 16, 3)
    actions[..., 0] = 0.5
    pose = torch.cat([torch.zeros(2, 1, 2), actions[..., :2].cumsum(1) / 10], 1)
    statistics = ActionStatistics(3, 2)
    statistics.fit(EpisodeBatch(torch.zeros(2, 17, 3, 8, 8, dtype=torch.uint8), actions, pose))
    assert statistics.reach.tolist() == pytest.approx([0.1, 0])


def test_poses_that_never_change_are_read_all_the_same():
    policy = TinyVLA(SHAPE.model_copy(update={"pose_dim": 2}))
    for pose in (torch.ones(1, 2), torch.tensor([[0.0, 1], [2, 1]])):
        policy.standardise(pose)
        assert torch.isfinite(policy.pose_std).all() and (policy.pose_std > 0).all()


def test_the_same_step_twice_is_the_same_artifact(shelf, tmp_path):
    """And so is what was made from it; a clock, a host or a path in what is hashed would tell them apart."""
    for step in ("collect", "world_model", "reward", "keyframes", "pace, choose", "pace, refit", "evaluate", "judge"):
        for name in ("one", "two"):
            run(step, shelf, tmp_path / name / step)
        assert digest_at(tmp_path / "one" / step) == digest_at(tmp_path / "two" / step), step
    ports = {name: shelf / name for name in ("policy", "world_model", "reward", "keyframes")}
    one, two = (
        improve_policy(GRPO, TASK, episodes=[shelf / "episodes"], out=tmp_path / name / "grpo", **ports).digest
        for name in ("one", "two")
    )
    assert one == two


def test_an_evaluation_of_another_programme_is_judged_with_the_usual_confidence(shelf, tmp_path):
    foreign = resigned(shelf / "evaluation", tmp_path / "foreign", manifest("settings", value={}))
    assert run("judge", shelf, tmp_path / "out", evaluation=foreign).summary["confidence"] == 0.95


# ------------------------------------------------------------------------------------------------------ at random


def poisoned(folder: Path, dice: random.Random) -> str:
    """Something no reader may believe, in one of the files; returns what was done."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "manifest.json"]
    file = dice.choice(files)
    if dice.random() < 0.2:
        data = bytearray(file.read_bytes())
        file.write_bytes(dice.choice([b"", bytes(data[: len(data) // 2]), dice.randbytes(64), b"null", b"[1]"]))
        return f"{file.name} replaced"
    if file.suffix == ".safetensors":
        tensors = load_file(file)
        name = dice.choice(sorted(tensors))
        how = dice.choice(["nan", "inf", "gone", "flat", "type", "more", "empty"])
        if how in ("nan", "inf"):
            tensors[name].view(-1)[dice.randrange(tensors[name].numel())] = float(how)
        elif how == "gone":
            del tensors[name]
        elif how == "more":
            tensors[f"{name}.more"] = torch.ones(1)
        elif how == "empty":
            tensors[name] = torch.empty(0)
        else:
            tensors[name] = tensors[name].flatten()[None, None] if how == "flat" else of_its_kind(tensors[name])
        save_file(tensors, file)
        return f"{file.name}: {name} {how}"
    if file.suffix == ".parquet":
        rows = pq.read_table(file)
        column = dice.randrange(rows.num_columns)
        name = rows.column_names[column]
        wrong = dice.choice([[None], [NAN], ["no"], [[1]]])
        values = pa.array(wrong * rows.num_rows)
        pq.write_table(rows.set_column(column, dice.choice([name, f"{name}2"]), values), file)
        return f"{file.name}: {name} is {wrong}"
    tree = json.loads(file.read_text())
    place, key = tree, dice.choice(sorted(tree))
    while isinstance(place[key], dict) and place[key]:
        place, key = place[key], dice.choice(sorted(place[key]))
    place[key] = dice.choice([v for v in (NAN, "no", True, None, [[]], {"a": 1}) if type(v) is not type(place[key])])
    file.write_text(json.dumps(tree))
    return f"{file.name}: {key} is {place[key]}"


UNREAD = {"stats.json", "tasks.parquet"}  # for LeRobot alone, as are these columns and keys of episodes
FOR_OTHERS = {
    "index",
    "task_index",
    "timestamp",
    "next.reward",
    "dataset_from_index",
    "dataset_to_index",
    "policy_digest",
    "source",
    "data/chunk_index",
    "data/file_index",
    "meta/episodes/chunk_index",
    "meta/episodes/file_index",
    "episode_index",
    "codebase_version",
    "robot_type",
    "total_episodes",
    "total_frames",
    "total_tasks",
    "chunks_size",
    "data_files_size_in_mb",
    "video_files_size_in_mb",
    "fps",
    "train",
    "data_path",
    "video_path",
    "names",
    "dtype",
}


@pytest.mark.parametrize("seed", range(FUZZ))
def test_nothing_at_random_is_believed(seed, shelf, tmp_path):
    dice = random.Random(seed)
    kind, done = dice.choice(sorted(READER)), []
    bad = resigned(shelf / kind, tmp_path / "bad", lambda folder: done.append(poisoned(folder, dice)))
    name, _, what = done[0].partition(":")
    with deadline(20, done[0]):
        try:
            run(READER[kind], shelf, tmp_path / "out", **{kind: bad})
        except (ArtifactError, SettingsError, TrainingError):
            return
    ours = kind != "episodes" or (name.split()[0] not in UNREAD and what.split(" is ")[0].strip() not in FOR_OTHERS)
    assert not ours, f"{kind}, {done[0]}: believed"


@pytest.mark.parametrize("seed", range(FUZZ))
def test_manifests_at_random_never_end_in_a_traceback(seed, shelf, tmp_path):
    dice = random.Random(seed)
    kind = dice.choice(sorted(READER))

    def change(folder: Path) -> None:
        tree = json.loads((folder / "manifest.json").read_text())
        for _ in range(dice.randint(1, 3)):
            place, key = tree, dice.choice(sorted(tree))
            while isinstance(place[key], dict) and place[key] and dice.random() < 0.8:
                place, key = place[key], dice.choice(sorted(place[key]))
            place[key] = dice.choice([NAN, 1e308, -1, "no", True, None, [], [[]], {}, {"a": 1}, 10**30])
        (folder / "manifest.json").write_text(json.dumps(tree))

    bad = resigned(shelf / kind, tmp_path / "bad", change)
    with deadline(20, kind), suppress(ArtifactError, SettingsError, TrainingError):
        run(READER[kind], shelf, tmp_path / "out", **{kind: bad})


def test_a_snapshot_of_no_update_is_refused_before_anything_is_tried(shelf, tmp_path):
    def change(folder: Path) -> None:
        shutil.copy(folder / "policy.safetensors", folder / "snapshot-best.safetensors")

    bad = resigned(shelf / "policy", tmp_path / "bad", change)
    ports = {"candidate": shelf / "policy", "baseline": shelf / "policy", "out": tmp_path / "out"}
    with pytest.raises(ArtifactError, match=r"snapshot-best\.safetensors is no snapshot"):
        evaluate_policies(EvaluateSettings(episodes=4), TASK, snapshots=(bad,), **ports)
