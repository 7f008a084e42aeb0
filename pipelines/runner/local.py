"""Run the very pipeline that Kubeflow would run, on this machine: kfp's local runner, task after task.

What has finished is not run again (kfp's cache), so a run that was stopped goes on where it stopped. In a terminal
kfp's runner leaves three wishes, and `Attendant` stands in for some of its functions to grant them: a task owns the
terminal, so that progress bars are bars; it dies with the run, so that nothing trains on unseen; and what each task
took and made is written down. That holds for tasks that are processes and for those in containers.
"""

import fcntl
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from getpass import getuser
from hashlib import sha256
from itertools import dropwhile
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kfp import local
from kfp.dsl import Artifact
from kfp.local import cache as kfp_cache
from kfp.local import docker_task_handler, subprocess_task_handler
from kfp.local.orchestrator import task_executor
from kfp.local.status import Status
from rich.console import Console
from rich.markup import escape

from components.platform import scoped
from components.platform.mlflow_client import database_of, sqlite_uri
from components.platform.storage import Storage, StorageError
from pipelines.catalogue import arguments_of, pipeline_named
from pipelines.runner.forked import ForkError, get_ready, run_task
from pipelines.runner.record import AGAIN, Finished, RecordError, Run, RunCache, set_aside, store_record, stored_at
from wovr_core.artifacts import ArtifactError, read_manifest
from wovr_core.artifacts.manifest import MANIFEST, code_version
from wovr_core.settings import Settings

if TYPE_CHECKING:
    from pipelines.runner.containers import Containers

T = TypeVar("T")
CHECKOUT = Path(__file__).parents[2]
CONTAINED = (  # in a container, where the task's source cannot be handed over as a file
    "import logging, sys; from pathlib import Path; logging.disable(logging.INFO); file = Path('/tmp/task.py'); "
    "file.write_text(sys.argv.pop(1)); sys.argv[1:1] = ['--component_module_path', str(file)]; "
    "from kfp.dsl.executor_main import executor_main; executor_main()"
)

CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")  # of a private authority, for S3 and for MLflow


class RunError(RuntimeError):
    """A run that did not finish, and why: the words of the task that failed, where it was one."""


def run_pipeline(
    settings: Settings,
    folder: Path,
    *,
    name: str = "posttrain",
    keep: bool = False,
    stack: bool = False,
    runner: Literal["subprocess", "docker"] = "subprocess",
    **parameters: str,
) -> Run:
    """Run a pipeline, or go on with a run; artifacts, logs and the cache of finished tasks lie under `folder`.

    `parameters` are those of the pipeline that are no settings.

    Another version of the code has another cache: finished tasks are run again when the code has changed. With
    `keep` the run goes on with those of the version that ran last. With `stack` artifacts are stored in the S3 bucket
    that the environment names, and those that have got lost or broken here since are fetched from it. The `runner`
    docker runs each task in a container of the project image, to the same end.
    """
    pipeline = pipeline_named(name)(settings)
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    storage = Storage.from_env() if stack else None
    with (
        _alone(folder),
        (folder / "kfp.log").open("a", buffering=1) as log,
        warnings.catch_warnings(),
        ExitStack() as ends,
    ):
        containers = None
        if runner == "docker":
            from pipelines.runner.containers import containers as contain

            containers = ends.enter_context(contain(folder))
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # kfp's, that our image may not be one of Python
        local.init(
            local.DockerRunner() if containers else local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder),
            workspace_root=str(folder / ".workspace"),  # which nobody uses; by default one is made in /tmp
            enable_caching=True,
        )
        environment = _environment(folder, settings.compute.device)
        attendant = Attendant(
            folder, Console(file=sys.stdout), environment, storage, containers, read=settings.inputs.folders().values()
        )
        if attendant.before.tasks and not (folder / ".finished").exists():
            attendant.tell_mended(
                "↻", f"{folder} lacks the hidden folder .finished, so all runs again: if this is a copy, copy it, too"
            )
        cache = RunCache(folder, _cache_of(folder, keep=keep), attendant.is_whole)
        get_ready(environment)
        with attendant.in_place_of_kfp(cache), redirect_stdout(log):
            try:
                pipeline(**arguments_of(pipeline, settings), **parameters)
            except RuntimeError as error:  # kfp names the task only
                raise RunError(attendant.complaint or str(error)) from error
    return attendant.run


class Attendant:
    """Sees to the tasks of a run: starts each, says how it goes, keeps the record."""

    def __init__(
        self,
        folder: Path,
        console: Console,
        environment: dict[str, str],
        storage: Storage | None = None,
        containers: "Containers | None" = None,
        read: Iterable[Path] = (),
    ) -> None:
        """`read`: folders of this machine that tasks read beside the run's own."""
        self.run, self.console, self.environment = Run(folder), console, environment
        self.storage, self.containers, self.read = storage, containers, tuple(read)
        self.before = self._recalled("run.json", Run.read) or Run(folder)
        self.stored = self._recalled("stored.json", stored_at) or {}
        self.complaint = ""  # of the first task that failed
        self._now = threading.local()  # the task of this thread: two of a loop run side by side
        self._started: Counter[str] = Counter()

    @contextmanager
    def in_place_of_kfp(self, cache: RunCache) -> Iterator[None]:
        """Within, kfp's local runner calls this attendant where it would do these things itself, and uses `cache`."""
        execute = self.execute(task_executor.execute_single_task)
        with (
            scoped.attribute(kfp_cache, "get_local_cache", lambda: cache),
            scoped.attribute(task_executor, "execute_single_task", execute),
            scoped.attribute(subprocess_task_handler, "run_local_subprocess", self.spawn),
            scoped.attribute(docker_task_handler, "run_docker_container", self.contain),
        ):
            yield

    def execute(self, original: Any) -> Any:
        """Stands in for kfp's execution of one task, cached or not."""

        def execute_single_task(**arguments: Any) -> tuple[dict[str, Any], Status]:
            task = arguments["task_spec"].component_ref.name.removeprefix("comp-")
            self._now.task, self._now.spawned = task, False
            started = time.monotonic()
            outputs, status = original(**arguments)
            seconds = time.monotonic() - started
            if status is Status.SUCCESS:
                spawned = self._now.spawned
                if not spawned and task in self.before.tasks:
                    seconds = self.before.tasks[task].seconds
                plain = {port: Path(v.uri) if isinstance(v, Artifact) else v for port, v in outputs.items()}
                self._store(task, outputs)
                self.run.add(task, Finished(round(seconds, 1), not spawned, plain))
                duration = f"{seconds:.0f} s" if spawned else "finished before"
                self.console.print(f"[green]✔[/] {task} [dim]{duration}[/]")
            return outputs, status

        return execute_single_task

    def _inherited(self) -> dict[str, str]:
        """Our own environment; a run without services dreams in its own process, whatever the environment names."""
        return {k: v for k, v in os.environ.items() if self.storage or not k.startswith("WOVR_TRITON_")}

    def is_whole(self, path: Path) -> bool:
        """Can this artifact of a finished task be reused? A lost or damaged one is fetched from S3, if it was stored.

        What is damaged is set aside, never deleted.
        """
        try:
            read_manifest(path)
            return True
        except ArtifactError as error:
            if not re.search(AGAIN, str(error)):  # there is a better way than to spend hours again
                self.complaint = self.complaint or str(error)
                raise RunError(str(error)) from error
            found = re.sub(AGAIN, "", str(error))
        if os.path.lexists(path):
            found += f"\n  set aside as {set_aside(path)}"
        uri = self.stored.get(path) if self.storage else None
        if uri is None:
            self.tell_mended("↻", f"{found}\n  {path.parent.name} runs again")
            return False
        try:
            self.storage.get(uri, path)
        except StorageError as error:
            self.complaint = f"{found}\nit could not be fetched from {uri}: {error}"
            raise
        self.tell_mended("↓", f"{found}\n  fetched from {uri}")
        return True

    def _recalled(self, name: str, read: Callable[[Path], T]) -> T | None:
        """What a file of the run says; nothing, and the file is set aside, if it is damaged."""
        try:
            return read(self.run.folder)
        except RecordError as error:
            self.tell_mended("↻", f"{error}\n  set aside as {set_aside(self.run.folder / name)}")
            return None

    def tell_mended(self, sign: str, words: str) -> None:
        self.console.print(f"[yellow]{sign}[/] {escape(words)}", soft_wrap=True)

    def _store(self, task: str, outputs: dict[str, Any]) -> None:
        """Take the artifacts of a task to S3, and write down where they lie there."""
        if not self.storage:
            return
        try:
            for port, made in outputs.items():
                if (
                    isinstance(made, Artifact) and (path := Path(made.uri) / MANIFEST).exists()
                ):  # kfp's own pages have none
                    name = f"runs/{run_name(self.run.folder)}/{task}/{port}"
                    self.stored[path.parent] = self.storage.put(path.parent, name)
            store_record(self.run.folder, self.stored)
        except StorageError as error:
            self.complaint = f"{task} is finished, but could not be stored: {error}\nrun this again to go on"
            raise

    def spawn(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Stands in for kfp's start of a process; `full_command` is a shell's, and carries the task's source."""
        _, _, _, source, *arguments = full_command
        environment = {**self._inherited(), **self.environment, **(env_vars or {})}
        with self._watched() as log:
            module = log.with_suffix(".py")
            module.write_text(source)
            try:
                code = run_task(["--component_module_path", str(module), *arguments], environment, log)
            except ForkError as error:
                log.write_text(f"{error}. The same command goes on from here\n")
                code = 1
        return self._ended(log, code)

    def contain(self, client: Any, image: str, command: list[str], volumes: Any, **options: Any) -> int:
        """Stands in for kfp's start of a container, which takes a container that is gone for one that succeeded."""
        _, _, _, source, *arguments = command
        environment = _in_container(self._inherited() | self.environment)
        with self._watched() as log:
            code = self.containers.run(
                ["python", "-c", CONTAINED, source, *arguments],
                environment=environment | options.get("environment", {}),
                mounts=dict.fromkeys(self.read, "ro") | _mounts(self.run.folder, environment),
                log=log,
                tell=lambda words: print(words, end="", file=self.console.file, flush=True),
                terminal=self.console.size if self.console.is_terminal else None,
            )
        return self._ended(log, code)

    @contextmanager
    def _watched(self) -> Iterator[Path]:
        """Around the start of a task: gives the file for its errors."""
        task, self._now.spawned = self._now.task, True
        self.console.print(f"[bold]▶ {task}[/]")
        self._started[task] += 1
        again = f"-{self._started[task]}" if self._started[task] > 1 else ""
        log = self.run.folder / "logs" / f"{task}{again}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("")
        yield log

    def _ended(self, log: Path, code: int) -> int:
        task = self._now.task
        if code:
            self.console.print(f"[red]✘ {task}[/]")
            self.complaint = self.complaint or f"{task}: {_last_words(log, code)}\n(all of it: {log})"
        return code


def run_name(folder: Path) -> str:
    """Under which MLflow and S3 know a run: two people's runs/tabletop are two runs, and so are a run and its copy."""
    place = sha256(f"{gethostname()}:{folder}".encode()).hexdigest()[:6]
    chosen = os.environ.get("WOVR_RUN") or f"{folder.name[:100]}-{place}"
    return re.sub(r"[^a-zA-Z0-9_.-]", "-", chosen)


def _environment(folder: Path, device: str) -> dict[str, str]:
    """What every task of the run finds in its environment; a device that the settings name is the device."""
    wishes = {
        "MLFLOW_TRACKING_URI": sqlite_uri(folder.parent / "mlflow.db"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "OMP_WAIT_POLICY": "passive",  # a waiting thread leaves its core to others
    }
    environment = {name: os.environ.get(name) or wish for name, wish in wishes.items()}
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment["WOVR_RUN"] = run_name(folder)
    environment["WOVR_DEVICE"] = os.environ.get("WOVR_DEVICE", device) if device == "auto" else device
    return environment | {"PYTHONPATH": path, "WOVR_SCRATCH": str(folder / "scratch"), "_KFP_RUNTIME": "true"}


def _in_container(environment: dict[str, str]) -> dict[str, str]:
    """Of our environment, what a task in a container needs: where the services are, and who asks them.

    It finds the code in its image.
    """
    carried = ("WOVR_", "MLFLOW_", "OMP_", "_KFP_", *CERTIFICATES)
    chosen = {k: v for k, v in environment.items() if k.startswith(carried) or k.lower() == "no_proxy"}
    return chosen | {"LOGNAME": getuser()}


def _mounts(folder: Path, environment: dict[str, str]) -> dict[Path, str]:
    """What a container shares with this machine: the run, MLflow's database, the models that Triton loads."""
    tracked, models = environment["MLFLOW_TRACKING_URI"], environment.get("WOVR_TRITON_REPOSITORY")
    written = [folder]
    if (database := database_of(tracked)) is not None:
        written.append(database.resolve().parent)
    if models:
        written.append(Path(models))
    bundles = [Path(environment[name]) for name in CERTIFICATES if environment.get(name)]
    return dict.fromkeys(filter(Path.exists, bundles), "ro") | dict.fromkeys(written, "rw")


def _cache_of(folder: Path, *, keep: bool) -> str:
    """The name of the cache of this version of the code; with `keep`, of the one that ran last."""
    newest = folder / ".finished" / "newest"
    name = code_version()
    if keep and newest.exists():  # a full disk may have left it empty
        before = newest.read_bytes().decode(errors="replace").strip()
        caches = [path for path in newest.parent.iterdir() if path.is_dir()]
        found = [path.name for path in caches if path.name == before] or [
            path.name for path in sorted(caches, key=lambda path: path.stat().st_mtime)
        ]
        name = found[-1] if found else name
    newest.parent.mkdir(exist_ok=True)
    newest.write_text(name)
    return name


def _last_words(log: Path, code: int) -> str:
    """The message of the exception that ended a task, without the way there."""
    if code < 0:
        died = -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
        why = (
            "a library has crashed: run it again, or see whether disk and memory are full"
            if died
            else "if that was not you, the machine may be out of memory"
        )
        return f"stopped by {signal.Signals(-code).name}; {why}"
    *_, after = log.read_text(errors="replace").split("Traceback (most recent call last):\n")
    words = list(dropwhile(lambda line: line.startswith(" "), after.splitlines()))
    return "\n".join(words) or f"exit code {code}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two runs in one folder would write into each other's checkpoints."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another run is at work in {folder}: wait for it, or choose another folder") from error
        yield
