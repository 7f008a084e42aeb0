"""What to install before the project itself: its dependencies and those of the extras that are named.

python3 requirements.py pyproject.toml EXTRA...      with a leading `only`: those of the extras alone
"""

import sys
import tomllib


def requirements(project: dict, extras: list[str]) -> list[str]:
    """By name of the extra; `only` as the first of them leaves the project's own dependencies out."""
    own = [] if extras[:1] == ["only"] else project["dependencies"]
    named = extras[1:] if extras[:1] == ["only"] else extras
    return [*own, *(one for extra in named for one in project["optional-dependencies"][extra])]


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        print(*requirements(tomllib.load(file)["project"], sys.argv[2:]), sep="\n")
