"""Text from outside becomes the name of a file: it stays in its folder, and no two texts share one."""

from pathlib import Path

import pytest
import torch

from tests.faults.harness import refused, wovr
from wovr_core.artifacts import Kind, read_episodes, write_episodes, writing
from wovr_core.artifacts.names import file_name
from wovr_core.trajectory import Episode

TEXTS = [
    "../../escape",
    "/etc/passwd",
    "..",
    ".",
    "/",
    "a/b",
    "a\\b",
    "c:con",
    "~",
    "$HOME",
    "-rf",
    "a;b",
    "a\0b",
    "a\nb",
    "pick up the soup",
    "Pick up the soup",
    "PICK UP THE SOUP",
    "pick up  the soup",
    " pick up the soup",
    "pick_up_the_soup",
    "a" * 400,
    "a" * 401,
    "é" * 200,
    "e" * 200,
    "lege den Würfel ab",
    "lege den Wurfel ab",
    "把红色积木放好",
    "把蓝色积木放好",
    "",
    " ",
    "unnamed",
    "con",
    "NUL",
    "a.b",
    "a b",
    "a  b",
    "\ud800",
    "🙂",
    "🙃",
]


def test_names_are_plain_short_and_never_shared():
    names = [file_name(text) for text in TEXTS]
    for text, name in zip(TEXTS, names, strict=True):
        assert 0 < len(name) <= 120 and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-"), (text, name)
        assert Path("folder", name).resolve().parent == Path("folder").resolve()
    assert len(set(names)) == len(TEXTS), "capitals do not count in a name"


def test_plain_words_have_the_name_that_libero_gives_them():
    assert file_name("pick up the soup") == "pick_up_the_soup"


def test_a_text_cannot_take_the_name_of_another():
    assert file_name(file_name("Pick up the soup").replace("_", " ")) != file_name("Pick up the soup")


def an_episode(instruction: str, seed: int) -> Episode:
    g = torch.Generator().manual_seed(seed)
    return Episode(
        instruction=instruction,
        init_state=seed,
        actions=torch.rand(8, 7, generator=g) * 2 - 1,
        frames=torch.randint(0, 256, (9, 3, 8, 8), generator=g, dtype=torch.uint8),
        pose=torch.rand(9, 7, generator=g),
        success=torch.arange(9) == 8,
    )


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    """An artifact with an instruction of each kind, and one of them twice."""
    pytest.importorskip("h5py")
    texts = [text for text in TEXTS if text.strip() and text.isprintable()]
    out = tmp_path_factory.mktemp("episodes") / "sent"
    with writing(out, Kind.EPISODES, settings={}) as draft:
        sent = [an_episode(text, i) for i, text in enumerate([*texts, texts[0]])]
        write_episodes(draft.folder, sent, source="here", policy_digest="none")
    return out


def test_nothing_is_lost_nor_written_outside(episodes, tmp_path):
    out = tmp_path / "deep" / "below" / "files"
    answer = wovr("episodes", "export", str(episodes), "--out", str(out))
    assert answer.exit_code == 0, answer.text
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {file.parent for file in files} == {out} and len(answer.text.split("\n")) - 1 == len(files)
    back = wovr("episodes", "import", str(out), "--steps", "16", "--out", str(tmp_path / "back"))
    assert back.exit_code == 0, back.text
    sent, came = (
        sorted((e.instruction.strip(), e.actions[:8].tolist()) for e in read_episodes(p))
        for p in (episodes, tmp_path / "back")
    )
    assert came == sent


@pytest.mark.parametrize("address", ["s3://bucket/key", "file:///tmp/key", "gs://bucket/key", "hf://datasets/a/b"])
def test_an_address_does_not_become_a_folder(episodes, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    refused(wovr("episodes", "export", str(episodes), "--out", address), "was an address")
    refused(wovr("episodes", "export", address, "--out", "files"), "was an address")
    refused(wovr("episodes", "import", str(episodes), "--steps", "16", "--out", address), "was an address")
    refused(wovr("run", "tabletop", "--out", address), "was an address")
    assert not list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.parametrize("what", ["a file", "a folder", "an empty folder", "a link to nowhere"])
def test_what_is_there_already_is_left_alone(episodes, tmp_path, what):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    elif what == "a link to nowhere":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if what == "a folder":
            (out / "pick_up_the_soup_demo.hdf5").write_text("mine")
    refused(wovr("episodes", "export", str(episodes), "--out", str(out)), str(out), "new folder")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == (["mine"] if "a f" in what else [])


def test_an_export_that_fails_leaves_nothing(episodes, tmp_path, monkeypatch):
    from wovr_core.steps import exchange

    def fail(path: Path, *_: object) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(exchange, "write_hdf5", fail)
    refused(wovr("episodes", "export", str(episodes), "--out", str(tmp_path / "out")), "disk full")
    assert not list(tmp_path.iterdir())
