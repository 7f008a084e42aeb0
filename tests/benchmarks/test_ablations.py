"""Rows that may be compared: the same base, the same real episodes, and nothing else switched than is said."""

import json
from pathlib import Path
from xml.etree import ElementTree

import ablations
import pytest
import real_rl
import torch
from ablation_table import ResultsError, write_table
from ablations import GUARDS, ROWS, Plan, RowError, plan, run, switches_of

from tests.toys import an_episode
from wovr_core.artifacts import Kind, writing
from wovr_core.envs import tabletop
from wovr_core.envs.splits import Split, split_of
from wovr_core.envs.tabletop import INSTRUCTIONS, Tabletop
from wovr_core.evaluation.success import success_rate
from wovr_core.policy.tiny_vla import Shape, TinyVLA, vocabulary_of
from wovr_core.setting_errors import SettingsError
from wovr_core.settings import GrpoSettings, PaceSettings, PolicySettings, Settings, TaskSettings
from wovr_core.store.policies import save_policy

FULL = Settings()
TINY = Settings.parse(
    {
        "policy": {"demonstrations": 8, "steps": 2},
        "collect": {"episodes": 5, "held_out": 3},
        "pace": {"rounds": 2, "episodes": 2, "held_out": 1, "updates": 3},
        "evaluate": {"episodes": 6},
    }
)


def updates(given: Plan) -> int:
    return given.settings.grpo.updates + sum(pace.updates for pace in given.rounds)


# ---------------------------------------------------------------------------------------------------- what is switched


@pytest.mark.parametrize("config", [FULL, Settings.load(ablations.CONFIG)], ids=["defaults", "tabletop"])
@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_valid_settings_and_the_real_episodes_of_the_full_method(row, config):
    full = Plan(config, [config.pace] * config.pace.rounds)
    given = plan(config, switches_of(row), row=row)
    assert given.real_episodes == full.real_episodes
    assert updates(given) == updates(full)
    assert len(given.rounds) == given.settings.pace.rounds
    for key, value in switches_of(row).items():
        branch = given.settings.model_dump()
        for part in key.split("."):
            branch = branch[part]
        assert branch == value


def test_every_guard_is_on_in_the_full_method_and_off_without_guards():
    bare, full = switches_of("no-guards"), FULL.model_dump()
    for guard in GUARDS.values():
        for key, off in guard.switches.items():
            on = full
            for part in key.split("."):
                on = on[part]
            assert on != off
            assert bare[key] == off


def test_without_rounds_their_episodes_and_updates_come_first():
    given = plan(TINY, ROWS["no-pace"].switches, row="no-pace")
    assert given.rounds == []
    collect = given.settings.collect
    assert (collect.episodes, collect.held_out) == (5 + 2 * 2, 3 + 2 * 1)
    assert given.settings.grpo.updates == TINY.grpo.updates + 2 * 3


def test_more_rounds_share_what_there_is():
    given = plan(
        FULL.model_copy(update={"pace": PaceSettings(rounds=1, episodes=160, held_out=48, updates=16)}),
        {"pace.rounds": 3},
        row="",
    )
    assert [pace.episodes for pace in given.rounds] == [53, 53, 54]
    assert [pace.held_out for pace in given.rounds] == [16, 16, 16]
    assert sum(pace.updates for pace in given.rounds) == 16
    assert given.settings.collect == FULL.collect, "so that the first phase is shared with the full method"


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"grpo.nonesuch": False}, r"row odd.*\n.*grpo.nonesuch: unknown setting"),
        ({"nonesuch.at": 1}, "nonesuch: unknown setting"),
        ({"grpo.kir_ratio": 2}, "grpo.kir_ratio"),
        ({"pace.rounds": 4}, r"row odd.*\n(.*\n)*.*pace\.held_out"),  # two held-out episodes for four rounds
        ({"collect.episodes": 6}, "would spend 15 real episodes, the full method 14"),
    ],
)
def test_a_row_that_cannot_be_run_is_refused_by_name(switches, said):
    with pytest.raises((RowError, SettingsError), match=said):
        plan(TINY, switches, row="odd")


# ------------------------------------------------------------------------------------------------------- real episodes


class Ledger(Tabletop):
    """Writes down where it begins; initial state i is won at step 3 + i, and then over and over."""

    begun: tuple[int, ...] = ()

    def reset(self, ids, split):
        type(self).begun += tuple(ids)
        self.steps = 0
        return super().reset(ids, split)

    def step(self, actions):
        super().step(actions)
        self.steps += 1
        return torch.arange(self.count) % 7 <= self.steps - 3


@pytest.fixture
def ledger(monkeypatch):
    environment = type("Own", (Ledger,), {})
    monkeypatch.setattr(tabletop, "Tabletop", environment)
    return environment


@pytest.fixture
def policy(tmp_path) -> Path:
    vocabulary, words = vocabulary_of(INSTRUCTIONS)
    torch.manual_seed(0)
    shape = Shape(vocabulary=vocabulary, words=words, image_size=48, features=4, keypoints=2, hidden=8)
    with writing(tmp_path / "policy", Kind.POLICY, settings={}) as draft:
        save_policy(draft.folder, TinyVLA(shape))
    return tmp_path / "policy"


@pytest.mark.parametrize("real_episodes", [16, 13, 5])
def test_online_grpo_spends_its_episodes_and_not_one_more(real_episodes, policy, ledger, tmp_path):
    cfg, task = GrpoSettings(num_groups=2, group_size=4, epochs=1), TaskSettings(seed=1)
    made = real_rl.improve_for_real(cfg, task, policy=policy, real_episodes=real_episodes, out=tmp_path / "out")
    assert len(ledger.begun) == made.summary["real_episodes"] == real_episodes
    assert {split_of(state) for state in ledger.begun} == {Split.COLLECTION}
    assert len(set(ledger.begun)) == -(-real_episodes // 4), "a group shares its initial state, and no other does"
    assert made.summary["updates"] == -(-real_episodes // 8)


def test_online_grpo_learns_from_groups_that_disagree(policy, tmp_path, monkeypatch):
    class Hard(Tabletop):
        def step(self, actions):
            super().step(actions)
            return torch.arange(self.count) % 2 == 0

    monkeypatch.setattr(tabletop, "Tabletop", Hard)
    real_rl.improve_for_real(
        GrpoSettings(num_groups=1, group_size=4), TaskSettings(), policy=policy, real_episodes=4, out=tmp_path / "out"
    )
    before, after = (real_rl.open_policy(path).state_dict() for path in (policy, tmp_path / "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_real_rollout_is_recorded_as_an_update_reads_it(policy, ledger):
    actor, generator = real_rl.open_policy(policy), torch.Generator().manual_seed(0)
    tried = real_rl.real_rollouts(actor, Split.COLLECTION.ids(4), TaskSettings(), temperature=1.3, generator=generator)
    assert tried.length.tolist() == [3, 4, 5, 6], "steps up to and including the first success"
    assert tried.success.all()
    assert tried.frames.shape == (4, 6, 3, 48, 48)
    for chunk in range(6):
        seen = ledger().reset(Split.COLLECTION.ids(4), Split.COLLECTION)
        seen = type(seen)(frames=tried.frames[:, chunk], pose=tried.pose[:, chunk], instructions=seen.instructions)
        again = actor.log_prob(seen, tried.choices[:, chunk], temperature=1.3)
        assert torch.allclose(again, tried.log_prob[:, chunk], atol=1e-5)
    assert [start.instruction for start in tried.starts] == list(seen.instructions)


def test_filtered_cloning_spends_its_episodes_and_learns_from_successes_alone(policy, ledger, tmp_path, monkeypatch):
    learnt = []
    monkeypatch.setattr(real_rl, "cloning_data", lambda episodes, *_, **__: learnt.extend(episodes))
    monkeypatch.setattr(real_rl, "clone", lambda *_, **__: [0.0])
    monkeypatch.setattr(real_rl, "read_episodes", lambda path: ["demonstration"])
    monkeypatch.setattr(ledger, "step", lambda env, actions: Tabletop.step(env, actions) | (torch.arange(9) < 2))
    made = real_rl.clone_successes(
        PolicySettings(),
        TaskSettings(),
        policy=policy,
        demonstrations=policy,
        real_episodes=9,
        temperature=1.0,
        out=tmp_path / "out",
    )
    assert len(ledger.begun) == made.summary["real_episodes"] == 9
    assert {split_of(state) for state in ledger.begun} == {Split.COLLECTION}
    assert learnt[0] == "demonstration"
    assert made.summary["successes"] == len(learnt) - 1 >= 2
    assert all(episode.succeeded for episode in learnt[1:])


@pytest.mark.parametrize(("success_at", "steps"), [(1, 8), (8, 8), (9, 16), (48, 48)])
def test_what_came_after_a_success_is_not_imitated(success_at, steps):
    assert len(real_rl.until_success(an_episode(success_at=success_at), 8).actions) == steps


# ----------------------------------------------------------------------------------------------------------- whole rows


@pytest.fixture
def steps(monkeypatch, policy) -> list[tuple[str, dict]]:
    """The steps that cost time, doing nothing but to write down what they were given."""
    called: list[tuple[str, dict]] = []
    kinds = {
        "collect_episodes": Kind.EPISODES,
        "train_world_model": Kind.WORLD_MODEL,
        "refit_world_model": Kind.WORLD_MODEL,
        "train_reward": Kind.REWARD_MODEL,
        "mine_keyframes": Kind.KEYFRAMES,
        "improve_policy": Kind.POLICY,
        "choose_policy": Kind.POLICY,
    }

    def fake(name):
        def step(cfg, task, *, out, **ports):
            with writing(out, kinds[name], settings=cfg) as draft:
                if name == "collect_episodes":
                    draft.summary["episodes"] = cfg.episodes + cfg.held_out
                if kinds[name] is Kind.POLICY:
                    save_policy(draft.folder, real_rl.open_policy(policy))
                    draft.summary |= {"imagined_frames": 1000, "settled": getattr(cfg, "plateau", None) is not None}
                    (draft.folder / "history.jsonl").write_text(json.dumps({"group_rates": [0.5, 1.0]}) + "\n")
                draft.summary["call"] = len(called)  # no two artifacts are the same
            called.append((name, {"cfg": cfg, **ports}))

        step.__name__ = name
        return step

    for name in kinds:
        monkeypatch.setattr(ablations, name, fake(name))
    return called


def result(row: str, out: Path, *, full: Settings = TINY, seed: int = 0, **changed) -> dict:
    keys = {key.replace("__", "."): value for key, value in changed.items()}
    path = run(row, full=full, seed=seed, out=out, changed=keys, command=f"ablations.py {row}")
    return json.loads(path.read_text())


def test_a_result_says_all_that_a_reader_asks(tmp_path, steps):
    said = result("online-grpo", tmp_path, seed=3, grpo__epochs=1)
    rate = success_rate(said["successes"], 6)
    assert (said["rate"], said["low"], said["high"], said["n"]) == (rate.value, rate.low, rate.high, 6)
    assert (said["row"], said["seed"], said["label"]) == ("online-grpo", 3, "online-grpo grpo.epochs=1")
    assert said["real_episodes"] == said["budget"] == 5 + 3 + 2 * (2 + 1)
    assert said["imagined_frames"] == 0
    assert said["settings"]["grpo"]["epochs"] == 1 and said["settings"]["task"]["seed"] == 3
    assert said["gained"] - said["lost"] == round(6 * said["difference"])
    assert said["difference_low"] <= said["difference"] <= said["difference_high"]
    assert 0 <= said["mcnemar_p"] <= 1
    assert said["seconds"] > 0 and said["date"] and said["command"] == "ablations.py online-grpo"
    assert said["won"].count("1") == said["successes"] and len(said["won"]) == 6


def test_the_base_spends_nothing_and_gains_nothing(tmp_path):
    said = result("base", tmp_path)
    assert (said["real_episodes"], said["gained"], said["lost"], said["difference"]) == (0, 0, 0, 0)


def test_the_method_spends_its_budget_round_by_round_and_learns_from_all_of_it(tmp_path, steps):
    said = result("wovr", tmp_path)
    names = [name for name, _ in steps]
    fit = ["train_reward", "mine_keyframes", "improve_policy"]
    again = ["collect_episodes", "choose_policy", "refit_world_model", *fit]
    assert names == ["collect_episodes", "train_world_model", *fit, *again, *again]
    assert said["real_episodes"] == said["budget"] and said["imagined_frames"] == 3000
    collected = [ports for name, ports in steps if name == "collect_episodes"]
    assert [(ports["cfg"].episodes, ports.get("round")) for ports in collected] == [(5, None), (2, 1), (2, 2)]
    refits = [ports["episodes"] for name, ports in steps if name == "refit_world_model"]
    assert [len(episodes) for episodes in refits] == [3, 4], "demonstrations, and every collection so far"
    assert [ports["updates"] for name, ports in steps if name == "improve_policy"] == [None, 3, 3]


def test_the_method_stops_where_reality_says_enough(tmp_path, steps):
    said = result("wovr", tmp_path, pace__plateau=0.5)
    assert [name for name, _ in steps][-2:] == ["collect_episodes", "choose_policy"]
    assert said["real_episodes"] == said["budget"] - (2 + 1), "the second round's are not spent"


def test_rows_share_what_they_agree_on_and_nothing_is_made_twice(tmp_path, steps):
    result("wovr", tmp_path)
    before = len(steps)
    assert result("no-kir", tmp_path)["made"][:5] == result("wovr", tmp_path)["made"][:5]
    assert [name for name, _ in steps[before : before + 2]] == ["improve_policy", "collect_episodes"]
    before = len(steps)
    said = result("no-noisy-context", tmp_path)
    assert [name for name, _ in steps[before : before + 2]] == ["train_world_model", "train_reward"]
    path, before = tmp_path / "seed-0" / "no-noisy-context.json", len(steps)
    path.unlink()
    assert {**result("no-noisy-context", tmp_path), "date": ""} == {**said, "date": ""}
    assert len(steps) == before, "a row that was stopped at its end goes on at its end"
    path.write_text(path.read_text().replace(said["command"], "what was written"))
    assert result("no-noisy-context", tmp_path)["command"] == "what was written", "a finished row is left alone"


def test_the_ceiling_is_tried_for_real_as_often_as_the_method_dreams(tmp_path, steps):
    said = result("ceiling", tmp_path)
    assert said["real_episodes"] == 3 * 2 * TINY.grpo.group_size, "three improvements, of one update with two groups"
    assert said["imagined_frames"] == 0


def test_rows_that_could_not_be_compared_are_refused(tmp_path):
    with pytest.raises(RowError, match=r"policy\.steps would part online-grpo"):
        result("online-grpo", tmp_path, policy__steps=3)
    with pytest.raises(RowError, match=r"evaluate\.episodes would part"):
        result("wovr", tmp_path, evaluate__episodes=3)
    result("base", tmp_path)
    with pytest.raises(RowError, match="other settings of reward"):
        result("base", tmp_path, full=TINY.model_copy(update={"reward": FULL.reward.model_copy(update={"steps": 1})}))


# ------------------------------------------------------------------------------------------------------------ the table


def a_result(row: str, seed: int, won: str, base: str) -> dict:
    wins, before = (torch.tensor([w == "1" for w in which]) for which in (won, base))
    c = ablations.compare(wins, before)
    return {
        "row": row,
        "label": row,
        "kind": ROWS[row].kind,
        "says": ROWS[row].says,
        "seed": seed,
        "budget": 14,
        "real_episodes": 14 if row != "base" else 0,
        "imagined_frames": 0,
        "seconds": 60,
        "n": len(won),
        "rate": c.candidate.value,
        "low": c.candidate.low,
        "high": c.candidate.high,
        "confidence": 0.95,
        "won": won,
        "difference": c.difference,
        "difference_low": c.low,
        "difference_high": c.high,
        "gained": c.gained,
        "lost": c.lost,
        "mcnemar_p": c.p_value,
        "date": "2026-01-02",
        "code_version": "1+abc",
    }


def put(folder: Path, *results: dict) -> None:
    for said in results:
        path = folder / f"seed-{said['seed']}" / f"{said['row']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said))


def cells(table: str, row: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {row} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_compares_trial_by_trial_and_seed_by_seed(tmp_path):
    base, no_kir = "0000000011", ("0001111111", "0000011111")
    put(tmp_path, *(a_result("no-kir", seed, won, base) for seed, won in enumerate(no_kir)))
    put(tmp_path, *(a_result("wovr", seed, "0111111111", base) for seed in (0, 1)))
    put(tmp_path, a_result("base", 0, base, base))
    table = write_table(tmp_path, order=list(ROWS))
    _, says, real, success, each, above_base, above_wovr = cells(table, "no-kir")
    assert (says, real) == (ROWS["no-kir"].says, "14")
    assert success == "60.0 [-67.1, 187.1]", "0.7 and 0.5: Student's 12.7 times 0.1 either way"
    assert each == "0: 70.0 [39.7, 89.2]; 1: 50.0 [23.7, 76.3]"
    assert above_base.startswith("+50.0 ["), "the one seed that the base has too"
    assert above_wovr == "-30.0 [-157.1, +97.1]"
    assert cells(table, "wovr")[3] == "90.0 [90.0, 90.0]" and cells(table, "wovr")[6] == ""
    assert cells(table, "base")[2] == "0"
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:5]]
    assert rows == ["base", "wovr", "no-kir"]
    assert (tmp_path / "table.md").read_text().strip() == table


def test_a_row_whose_trials_are_lost_keeps_its_rate_and_is_compared_with_none(tmp_path):
    lost = a_result("no-kir", 0, "0111", "0001")
    del lost["won"]
    put(tmp_path, lost, a_result("no-kir", 1, "0111", "0001"), *(a_result("wovr", s, "1111", "0001") for s in (0, 1)))
    _, _, _, success, _, _, above_wovr = cells(write_table(tmp_path, order=list(ROWS)), "no-kir")
    assert success.startswith("75.0 [") and above_wovr.startswith("-25.0 [")


def test_the_figure_stands_alone_and_shows_every_row_and_seed(tmp_path):
    won = ("0001", "0011", "0111")
    put(tmp_path, *(a_result(row, seed, won[seed], "0001") for row in ("base", "wovr", "no-kir") for seed in (0, 1, 2)))
    write_table(tmp_path, order=list(ROWS))
    drawing = ElementTree.parse(tmp_path / "figure.svg").getroot()
    of = "{http://www.w3.org/2000/svg}"
    words = [mark.text for mark in drawing.iter(f"{of}text")]
    assert all(any((w or "").startswith(ROWS[row].says) for w in words) for row in ("base", "wovr", "no-kir"))
    assert words.count("50.0 %") == 3 and any("14 real episodes unless" in (w or "") for w in words)
    across = [float(dot.get("cx")) for dot in drawing.iter(f"{of}circle")]
    assert across[:3] == across[3:6] == across[6:9] and across[1] - across[0] == pytest.approx(
        across[2] - across[1], abs=0.2
    )
    assert across[0] < across[1] and len(across) == 9 and len(list(drawing.iter(f"{of}rect"))) == 3
    assert "the base policy (0 real episodes)" in words


def test_rows_of_different_code_are_told_of_and_no_rows_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="no results"):
        write_table(tmp_path, order=list(ROWS))
    put(tmp_path, a_result("wovr", 0, "01", "00"), a_result("base", 0, "00", "00") | {"code_version": "2+def"})
    assert "not all by the same code" in write_table(tmp_path, order=list(ROWS))
