"""Tasks in containers: what they may do, how they end, and what is said when there can be none.

Those that need an engine and the project image run where both are (`make images`), and in `tools/container-smoke.sh`.
"""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import docker
import pytest
from docker.errors import DockerException
from requests.exceptions import ReadTimeout

from components import images
from pipelines.runner import containers
from pipelines.runner.containers import ContainerError
from pipelines.runner.local import _in_container, _mounts

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def engine():
    try:
        client = docker.from_env()
        client.images.get(images.TRAIN)
    except DockerException as error:
        pytest.skip(f"no Docker engine with {images.TRAIN} here (make images): {type(error).__name__}")
    yield client
    client.close()


@pytest.fixture
def at_work(engine, tmp_path):
    """Containers of a run in `tmp_path`."""
    try:
        with containers.containers(tmp_path) as ready:
            yield ready
    except ContainerError as error:
        if "other code" not in str(error):
            raise
        pytest.skip(str(error))


def end(ready: containers.Containers, script: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit code, and what was told, of a shell's script."""
    told: list[str] = []
    code = ready.run(
        ["sh", "-c", script],
        environment=environment,
        mounts={folder: "rw"},
        log=folder / "log",
        tell=told.append,
        terminal=None,
    )
    return code, "".join(told)


def test_without_an_engine_it_is_said_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(ContainerError, match=r"no Docker engine answers at unix://.*make images.*--runner subprocess"):
        containers.containers(tmp_path).__enter__()


def test_a_container_is_told_where_the_services_are_and_not_what_else_we_know(tmp_path):
    ours = {
        "WOVR_S3_SECRET_KEY": "k",
        "MLFLOW_TRACKING_URI": "http://m",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "WOVR_TRITON_REPOSITORY": "/models",
        "PYTHONPATH": "/checkout",
        "HOME": "/root",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    told = _in_container(ours)
    assert {"PYTHONPATH", "HOME", "AWS_SECRET_ACCESS_KEY"}.isdisjoint(told)
    assert told.items() >= {k: ours[k] for k in ("WOVR_S3_SECRET_KEY", "MLFLOW_TRACKING_URI", "NO_PROXY")}.items()
    assert _mounts(tmp_path, told) == {tmp_path: "rw", Path("/models"): "rw"}
    (tmp_path / "ca.pem").touch()
    embedded = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "SSL_CERT_FILE": f"{tmp_path}/ca.pem"}
    assert _mounts(tmp_path / "mine", embedded) == {tmp_path / "ca.pem": "ro", tmp_path / "mine": "rw", tmp_path: "rw"}


def test_the_code_is_known_by_the_method_and_by_what_carries_it(monkeypatch, tmp_path):
    known = images.code()
    assert known == images.code()
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "s3.py").write_text("")
    monkeypatch.setattr(images, "__file__", str(tmp_path / "images.py"))
    changed = images.code()
    assert changed.split("-")[0] == known.split("-")[0] and changed != known
    (tmp_path / "platform" / "s3.py").write_text("pass")
    assert images.code() != changed


def test_an_image_that_is_not_there_or_is_not_ours_is_refused_before_anything_runs(engine, tmp_path, monkeypatch):
    with pytest.raises(ContainerError, match=r"has no image nonesuch:1: `make images` builds it"):
        containers.containers(tmp_path, "nonesuch:1").__enter__()
    monkeypatch.setattr(images, "code", lambda: "another")
    with pytest.raises(
        ContainerError, match=r"built from other code .* than this checkout's \(another\): `make images`"
    ):
        containers.containers(tmp_path).__enter__()


def test_a_task_may_write_to_its_run_and_to_tmp_and_has_no_privilege(at_work, tmp_path):
    code, told = end(
        at_work,
        f"touch {tmp_path}/here /tmp/there; touch /opt/no; touch /etc/no; "
        "grep -E 'CapEff|NoNewPrivs' /proc/self/status; echo $KEY; which pip gcc; exit 5",
        tmp_path,
        KEY="handed over",
    )
    assert code == 5
    assert "CapEff:\t0000000000000000" in told and "NoNewPrivs:\t1" in told and "handed over" in told
    assert (tmp_path / "log").read_text().count("Read-only file system") == 2
    assert (tmp_path / "here").stat().st_uid == tmp_path.stat().st_uid
    assert "/pip" not in told and "/gcc" not in told


def test_a_task_that_a_signal_ends_says_by_which(at_work, tmp_path):
    assert end(at_work, "sh -c 'kill -9 $$'; exit $?", tmp_path)[0] == -9


def test_a_run_that_is_killed_leaves_no_container_behind(at_work, engine, tmp_path):
    run = (
        "import sys; from pathlib import Path; from pipelines.runner.containers import containers\n"
        "folder = Path(sys.argv[1])\n"
        "with containers(folder) as ready: ready.run(['sleep', '100'], environment={}, mounts={folder: 'rw'}, "
        "log=folder / 'log', tell=print, terminal=None)"
    )
    folder = tmp_path / "killed"
    folder.mkdir()
    mine = {"filters": {"label": f"{containers.RUN}={folder}"}, "all": True}
    killed = subprocess.Popen([sys.executable, "-c", run, folder], cwd=CHECKOUT)
    wait_until(lambda: [one for one in engine.containers.list(**mine) if one.status == "running"], seconds=60)
    killed.kill()
    killed.wait()
    wait_until(lambda: not engine.containers.list(**mine), seconds=15)

    left = engine.containers.create(images.TRAIN, ["sleep", "1"], labels={containers.RUN: str(folder)})
    with containers.containers(folder):
        assert left.id not in [one.id for one in engine.containers.list(**mine)], (
            "left by a run that died with its reaper"
        )


def wait_until(happens, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def hang(timeout: float) -> None:
    raise ReadTimeout(f"nothing came for {timeout} s")


@pytest.mark.parametrize(
    ("wait", "complaint"),
    [
        (lambda timeout: {"StatusCode": 1}, r"cannot be used: no module; `make images`"),
        (hang, r"did not run .* within 120 s: .*docker ps"),
        (lambda timeout: {"StatusCode": 0}, r"built from other code \(no module\)"),
    ],
)
def test_an_engine_that_does_not_get_on_is_waited_for_no_longer_than_two_minutes(wait, complaint):
    removed = []
    probe = SimpleNamespace(wait=wait, logs=lambda **_: b"no module\n", remove=lambda force: removed.append(force))
    client = SimpleNamespace(
        images=SimpleNamespace(get=lambda name: name), containers=SimpleNamespace(run=lambda *_, **__: probe)
    )
    with pytest.raises(ContainerError, match=complaint):
        containers._examine(client, "image:1")
    assert removed == [True], "the container goes in any case"
