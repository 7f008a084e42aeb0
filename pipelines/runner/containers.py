"""The tasks of a run, each in a container of the project image: as Kubeflow would run them, on this machine.

A container has no more than its task needs: our own user without any privilege, the run's folder, a /tmp. It goes when
its task ends, and when the run ends in whatever way.
"""

import codecs
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest
from requests.exceptions import RequestException

from components import images
from components.platform.deadline import DeadlineError, within

ANSWER = 15.0  # seconds for its first answer
PATIENCE = 120  # seconds for a container that only says which code it holds
GPUS = [DeviceRequest(count=-1, capabilities=[["gpu"]])]  # all of them
RUN = "wovr.run"  # the label that says to which run's folder a container belongs
# waits for the end of the run, that is of its own input, and removes what the run could not
REAPER = """
import sys, docker
sys.stdin.read()
for container in docker.from_env().containers.list(all=True, filters={"label": sys.argv[1]}):
    container.remove(force=True)
"""


class ContainerError(RuntimeError):
    """An engine or an image that will not do, and what to do about it."""


@dataclass(frozen=True)
class Containers:
    """An engine that answers, and an image that holds the code of this checkout."""

    client: docker.DockerClient
    image: str
    folder: Path  # of the run

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        mounts: Mapping[Path, str],
        log: Path,
        tell: Callable[[str], object],
        terminal: tuple[int, int] | None,
    ) -> int:
        """Run `command` to its end, and return its exit code, negative if a signal ended it.

        What it prints is told as it comes, its errors go to the file `log` under one of the `mounts`, which lie at the
        same paths inside and are "rw" or "ro". `terminal` is the width and height of one that progress bars may use.
        """
        shape = dict(zip(("COLUMNS", "LINES"), map(str, terminal), strict=True)) if terminal else {}
        try:
            container = self.client.containers.create(
                self.image,
                ["sh", "-c", 'exec "$@" 2>"$0"', str(log), *command],
                environment={**shape, "TERM": os.environ.get("TERM", "dumb"), **environment},
                labels={RUN: str(self.folder)},
                tty=terminal is not None,
                network_mode="host",
                volumes={str(path): {"bind": str(path), "mode": mode} for path, mode in mounts.items()},
                device_requests=GPUS if environment.get("WOVR_DEVICE") == "cuda" else None,
                **confined(),
            )
            try:
                container.start()
                decoder = codecs.getincrementaldecoder("utf-8")("replace")
                for output in container.logs(stream=True, follow=True):
                    tell(decoder.decode(output))
                code = container.wait()["StatusCode"]
            finally:
                _remove(container)
        except (DockerException, RequestException) as error:
            raise ContainerError(f"the container engine could not run a task in {self.image}: {error}") from error
        return 128 - code if code > 128 else code


def confined() -> dict[str, object]:
    """What every container goes without: another user, privileges, a writable root file system."""
    return {
        "user": f"{os.getuid()}:{os.getgid()}",  # what it writes belongs to whoever runs this
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777"},
        "shm_size": "1g",
    }


@contextmanager
def containers(folder: Path, image: str = images.TRAIN) -> Iterator[Containers]:
    """For the tasks of the run in `folder`; refuses before the first of them if they could not run.

    Only one run may be at work in a folder: containers that are left there are those of one that died.
    """
    where = os.environ.get("DOCKER_HOST", "/var/run/docker.sock")
    try:
        client = within(ANSWER, f"the Docker engine at {where}", docker.from_env)
    except (DockerException, DeadlineError) as error:
        raise ContainerError(
            f"no Docker engine answers at {where}: start one, or say where it is with DOCKER_HOST; `make images` "
            f"starts one where there is none, and `--runner subprocess` does without"
        ) from error
    label = f"{RUN}={folder}"
    try:
        _examine(client, image)
        for left in client.containers.list(all=True, filters={"label": label}):
            _remove(left)
        # in a session of its own: a Ctrl-C is not meant for it
        with subprocess.Popen(
            [sys.executable, "-c", REAPER, label], stdin=subprocess.PIPE, start_new_session=True
        ) as reaper:
            try:
                yield Containers(client, image, folder)
            finally:
                reaper.stdin.close()
    finally:
        client.close()


def _examine(client: docker.DockerClient, image: str) -> None:
    """Is the image there, and does it hold this code? It is asked itself: a label says only what was meant."""
    ask = ["python", "-c", "from components.images import code; print(code())"]
    try:
        client.images.get(image)
        probe = client.containers.run(image, ask, detach=True, network_mode="none", **confined())
        try:
            code = probe.wait(timeout=PATIENCE)["StatusCode"]
            holds = probe.logs(stdout=True, stderr=bool(code)).decode().strip()
        finally:
            _remove(probe)
    except ImageNotFound as error:
        raise ContainerError(
            f"the Docker engine has no image {image}: `make images` builds it, $WOVR_IMAGE names another"
        ) from error
    except DockerException as error:
        raise ContainerError(f"the image {image} cannot be used: {error}; `make images` builds it anew") from error
    except RequestException as error:
        raise ContainerError(
            f"the Docker engine did not run a container of {image} within {PATIENCE} s: see whether it is well "
            f"(`docker ps`), or do without: `--runner subprocess`"
        ) from error
    if code:
        raise ContainerError(f"the image {image} cannot be used: {holds[-500:]}; `make images` builds it anew")
    if holds != (ours := images.code()):
        raise ContainerError(
            f"the image {image} was built from other code ({holds}) than this checkout's ({ours}): `make images` "
            f"builds it anew"
        )


def _remove(container: "docker.models.containers.Container") -> None:
    with suppress(NotFound):
        container.remove(force=True)
