"""From an address to a policy in memory: what lies there today, and fetching it. Everything is checked by digest."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from components.serving.policy.address import PolicyAddress
from components.serving.policy.served import ServedPolicy, open_served
from wovr_core.artifacts import ArtifactError
from wovr_core.settings import PromoteSettings


@dataclass(frozen=True)
class Whereabouts:
    """What an address means at this moment."""

    exact: PolicyAddress  # never an alias
    stamp: str  # changes whenever another policy lies there


def look(address: PolicyAddress) -> Whereabouts:
    """Which policy an address means now. Raises what MLflow raises, and `PromotionError` where nobody has the alias."""
    if address.kind != "alias":
        return Whereabouts(address, address.text)
    from components.platform.mlflow_client import open_client
    from components.platform.promotions import PromotionError, run_of, version_at

    client = open_client()
    number = version_at(client, address.model, address.alias)
    if number is None:
        raise PromotionError(f"nobody is {address.alias} of {address.model} yet: promote a version, or name one")
    found = client.get_model_version(address.model, number)  # its run, for a model made again counts from 1 again
    return Whereabouts(address.at(number), f"{number} {run_of(found)}")


def open_at(address: PolicyAddress) -> ServedPolicy:
    """Fetch and open the policy of an exact address; nothing of it stays on disk."""
    if address.kind == "folder":
        return open_served(address.folder)
    with TemporaryDirectory(prefix="wovr-policy-") as folder:
        out = Path(folder) / "policy"
        if address.kind == "s3":
            from components.platform.storage import Storage

            Storage.from_env().get(address.text, out)
            return open_served(out)
        if address.kind == "version":
            from components.platform.champion import fetch_version

            fetch_version(PromoteSettings(model=address.model), policy=out, version=address.version)
            return open_served(out, version=address.version)
    raise ArtifactError(f"{address.text} is an alias, which has to be looked up first")
