"""A pipeline of three tasks as real ones are: they write artifacts, deterministic, each from the one before.

Each writes down in $TOY_LOG that it ran; `draw` takes $TOY_SECONDS.
"""

from kfp import dsl
from kfp.dsl import Input, Output

from components import images
from components.artifacts import PolicyArtifact


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def draw(task: dict, numbers: Output[PolicyArtifact], page: Output[dsl.Markdown]):
    import os
    import time
    from pathlib import Path

    from wovr_core.artifacts import Kind, writing

    print("drawing", flush=True)
    with open(os.environ["TOY_LOG"], "a") as log:
        log.write("draw\n")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    with writing(Path(numbers.path), Kind.POLICY, settings=task) as draft:
        (draft.folder / "numbers.txt").write_text("1 2 3\n")
    Path(page.path).write_text("three numbers\n")


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def double(numbers: Input[PolicyArtifact], doubled: Output[PolicyArtifact]) -> str:
    import os
    from pathlib import Path

    from wovr_core.artifacts import Kind, read_manifest, writing

    with open(os.environ["TOY_LOG"], "a") as log:
        log.write("double\n")
    source = Path(numbers.path)
    read_manifest(source, Kind.POLICY)
    with writing(Path(doubled.path), Kind.POLICY, settings={}, made_from={"numbers": source}) as draft:
        (draft.folder / "numbers.txt").write_text((source / "numbers.txt").read_text() * 2)
    return "./no/path"


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def add(numbers: Input[PolicyArtifact], doubled: Input[PolicyArtifact], sum: Output[PolicyArtifact]):
    import os
    from pathlib import Path

    from wovr_core.artifacts import Kind, writing

    with open(os.environ["TOY_LOG"], "a") as log:
        log.write("add\n")
    sources = {"numbers": Path(numbers.path), "doubled": Path(doubled.path)}
    with writing(Path(sum.path), Kind.POLICY, settings={}, made_from=sources) as draft:
        (draft.folder / "numbers.txt").write_text("".join((s / "numbers.txt").read_text() for s in sources.values()))


@dsl.pipeline(name="toy")
def toy(task: dict):
    drawn = draw(task=task).outputs["numbers"]
    doubled = double(numbers=drawn).outputs["doubled"]
    add(numbers=drawn, doubled=doubled)
