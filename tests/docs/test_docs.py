"""Pages that can be skimmed, links that lead somewhere, pictures that show what the page says."""

import re
from pathlib import Path

import pytest

from tools.page_charts import PICTURES, picture
from wovr_core.architecture import ArchitectureSettings
from wovr_core.settings import Settings, WorldModelSettings

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.md"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
ROOMS = ("wovr_core", "components", "pipelines", "benchmarks", "tools", "images", "charts", "docs")
MAP = (ROOT / "README.md").read_text().partition("## Where things lie")[2]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", RESULTS, ids=named)
def test_a_results_page_begins_with_what_is_true_now_and_is_short(page):
    words = page.read_text()
    assert re.findall(r"^##+ .*", words, re.MULTILINE)[0] == "## What is true now"
    assert len(words.split()) <= 600


@pytest.mark.parametrize("page", RESULTS, ids=named)
def test_a_results_page_has_one_table_and_one_picture(page):
    words = page.read_text()
    assert len(re.findall(r"^\|[-|]+\|$", words, re.MULTILINE)) == 1
    assert len(re.findall(r"!\[", words)) == 1


@pytest.mark.parametrize("page", PICTURES)
def test_a_picture_shows_the_numbers_of_its_page(page, tmp_path):
    assert picture(page, tmp_path).read_text() == (ROOT / "docs" / "results" / f"{page}.svg").read_text()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_that_code_or_a_page_names_exists():
    logs = ROOT / "docs" / "log"  # left as they were written
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*") if file.suffix in {".py", ".md", ".yaml"}]
    for file in files:
        if logs not in file.parents:
            for name in re.findall(r"docs/[\w/.-]+\.md", file.read_text()):
                assert (ROOT / name).exists(), f"{named(file)} names {name}"


def test_a_log_says_that_it_is_one():
    for page in ROOT.glob("docs/log/*.md"):
        assert page.read_text().startswith("> This is a log")


def test_the_changelog_has_versions_headings_and_short_bullets():
    words = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)", words, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert all(re.match(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", version) for version in versions[1:]), versions
    assert set(re.findall(r"^### (.*)", words, re.MULTILINE)) <= {"Added", "Changed", "Fixed", "Known limits"}
    for bullet in re.findall(r"^- (.*(?:\n  .*)*)", words, re.MULTILINE):
        assert len(bullet.split()) <= 20, bullet


def test_every_setting_that_a_page_names_exists():
    tree = Settings(world_model=WorldModelSettings(architecture=ArchitectureSettings())).model_dump()
    for page in PAGES:
        if page.name != "CHANGELOG.md" and page.parent.name not in ("log", "results"):
            for name in re.findall(r"`([a-z_]+\.[a-z_.]+)[`:]", page.read_text()):
                branch, *rest = name.split(".")
                if branch in tree and rest[-1] not in ("py", "md", "yaml"):
                    place = tree[branch]
                    for part in rest:
                        assert isinstance(place, dict) and part in place, f"{named(page)} names {name}"
                        place = place[part]


def test_every_file_that_a_page_names_exists():
    for page in PAGES:
        if page.name not in ("CHANGELOG.md", "extending.md") and page.parent.name != "log":
            for name in re.findall(r"`([\w-]+/[\w/.-]+\.(?:py|md|yaml))`", page.read_text()):
                assert any((ROOT / room / name).exists() for room in ("", "wovr_core")), f"{named(page)}: {name}"


def test_the_map_of_the_readme_is_that_of_the_tree():
    room = ROOT
    for indent, name in re.findall(r"^( *)(\S+) {2,}\S", MAP, re.MULTILINE):
        if len(indent) <= 2:  # further in, a line goes on
            room = ROOT if not indent else room
            assert (room / name).exists(), name
            room = room if indent else ROOT / name
