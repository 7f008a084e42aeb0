"""The keys of S3 on a cluster, made once: `python -m components.platform.keys`, which the chart runs in a Job."""

import secrets
import sys
from pathlib import Path
from typing import Any

from components.platform.services_env import SERVICES

KEYS = {"WOVR_S3_ACCESS_KEY": 20, "WOVR_S3_SECRET_KEY": 40}  # and how many letters each has
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class KeysError(RuntimeError):
    """Keys that cannot be made, and what to do about it."""


def ensure_keys(namespace: str, *, api: Any = None) -> str:
    """Give the Secret both keys where it has neither, and say what was done. Nothing that it holds is changed."""
    from kubernetes import client

    core = client.CoreV1Api(api)
    made = {name: secrets.token_hex(letters // 2) for name, letters in KEYS.items()}
    try:
        held = core.read_namespaced_secret(SERVICES, namespace).data or {}
        held = {name for name, value in held.items() if value}
    except client.ApiException as error:
        if error.status != 404:
            raise
        labels = {"app.kubernetes.io/part-of": "wovr"}
        core.create_namespaced_secret(
            namespace, {"metadata": {"name": SERVICES, "labels": labels}, "type": "Opaque", "stringData": made}
        )
        return f"made the Secret {SERVICES} in {namespace}"
    if missing := sorted(made.keys() - held):
        if len(missing) < len(made):
            raise KeysError(
                f"the Secret {SERVICES} in {namespace} has one key of S3 and no {missing[0]}: add that, or remove the "
                f"other"
            )
        core.patch_namespaced_secret(SERVICES, namespace, {"stringData": made})
        return f"added keys of S3 to the Secret {SERVICES} in {namespace}"
    return f"the Secret {SERVICES} in {namespace} has its keys"


def main() -> None:
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    try:
        config.load_incluster_config()
        print(ensure_keys(NAMESPACE.read_text().strip()))
    except config.ConfigException:
        sys.exit("this is no pod with an account: the chart runs it in a Job; elsewhere make the Secret with kubectl")
    except KeysError as error:
        sys.exit(str(error))
    except client.ApiException as error:
        sys.exit(f"the Secret {SERVICES} cannot be made: the API server answers {error.status} {error.reason}")
    except HTTPError as error:
        sys.exit(f"the Secret {SERVICES} cannot be made: the API server does not answer ({type(error).__name__})")


if __name__ == "__main__":
    main()
