"""Values of the chart: each set of them renders what a server takes, or is refused by the name of the value."""

import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from components.platform.cluster import ClusterError
from pipelines.catalogue import PIPELINES
from pipelines.runner.submit import six_fields
from tests.charts.test_chart import CHART, CUSTOM, EXTERNAL, KUBERNETES, POLICIES, SETS
from tests.faults.harness import FUZZ
from wovr_core.settings import Settings

SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LABEL_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?"
FACTORS = {"": 1, "m": 1e-3, "M": 1e6, "G": 1e9, "T": 1e12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
EVERYTHING = {  # so that every template renders
    "triton": {"autoscaling": {"enabled": True}},
    "policyServer": SETS["robots"]["policyServer"] | SETS["watched"]["policyServer"],
    "monitoring": SETS["watched"]["monitoring"],
    "schedule": {**SETS["scheduled"]["schedule"]},
}
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)  # it reads 2 MB each time


class Strict(yaml.CSafeLoader):
    """As Helm's reader: a key that comes twice is an error."""


def _mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value]
    assert len(names) == len(set(names)), f"twice in one mapping: {names}"
    return loader.construct_mapping(node, deep=True)


Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


@cache
def chart() -> helm.Chart:
    return helm.Chart.load(str(CHART))


def rendered(values: dict[str, Any], name: str = "rel", namespace: str = "robots") -> list[dict[str, Any]]:
    files = chart().render(values, name=name, namespace=namespace)
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.load_all(text, Strict) if document]


CHECKED: set[str] = set()  # documents that were found valid; most sets of values change few of them


def check(documents: list[dict[str, Any]]) -> None:
    """What an API server looks at, as far as no server is needed."""
    for document in documents:
        if (text := repr(document)) not in CHECKED:
            _check(document)
            CHECKED.add(text)


def _check(document: dict[str, Any]) -> None:
    kind, metadata = document["kind"], document["metadata"]
    if kind in CUSTOM:
        body = {key: value for key, value in document.items() if key not in ("apiVersion", "kind", "metadata")}
        jsonschema.validate(body, CUSTOM[kind])
        texts = [metadata["name"], metadata["namespace"], *metadata["labels"].values()]
        assert all(isinstance(text, str) for text in texts), metadata
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert re.fullmatch(SUBDOMAIN, metadata["name"]) and len(metadata["name"]) <= 253, metadata
    assert all(re.fullmatch(LABEL_VALUE, value) for value in metadata["labels"].values()), metadata
    if kind == "Service":
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", metadata["name"]) and len(metadata["name"]) <= 63, metadata
    if kind in ("StatefulSet", "Job"):
        assert len(metadata["name"]) <= 52 + 11 * (kind == "Job"), (
            f"{metadata['name']} is too long for its pods' labels"
        )
    for name, value in _named(document):
        if name in ("storageClassName", "serviceAccountName") or (name == "name" and isinstance(value, str)):
            assert re.fullmatch(rf"{SUBDOMAIN}|[A-Z0-9_]+|Host", value), (name, value)
        if name == "resources" and "limits" in value:
            for what, limit in value["limits"].items():
                assert amount(value["requests"].get(what, 0)) <= amount(limit), value


def amount(quantity: str | int | float) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()
    assert float(number) > 0 or number == "0", quantity
    return float(number) * FACTORS[unit]


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield str(key), value
        yield from _named(value)


def refused(values: dict[str, Any], *words: str, name: str = "rel") -> str:
    """Helm refused, in words that name the value; no template broke."""
    with pytest.raises(helm.HelmError) as error:
        check(rendered(values, name))
    text = str(error.value)
    assert not [word for word in words if word not in text], f"{words}: {text}"
    assert not re.search("nil pointer|cannot unmarshal|error calling|wrong type|map\\[", _message(text)), text
    return text


def _message(text: str) -> str:
    """The message of `fail`, without Helm's "error calling fail" before it."""
    return text.split("error calling fail:")[-1]


def paths(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += paths(value, (*above, key))
    return found


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(below[key], above[key])
        for key in below.keys() & above.keys()
        if isinstance(below[key], dict) and isinstance(above[key], dict)
    }
    return {**below, **above, **both}


PATHS = paths(DEFAULTS)
MAY_BE_MISSING = {("global",), ("global", "imagePullSecrets")}  # Helm makes the one, and a chart around this the other


@pytest.mark.parametrize("path", [path for path in PATHS if path not in MAY_BE_MISSING], ids=".".join)
def test_a_value_set_to_null_is_refused_by_its_name(path):
    refused(merged(EVERYTHING, at(path, None)), path[-1])


@pytest.mark.parametrize("values", [{"global": None}, {"global": {"imagePullSecrets": None}}, {"global": {"a": None}}])
def test_what_a_chart_around_this_one_sets_may_be_missing(values):
    check(rendered(values))


def test_two_renderings_are_the_same():
    assert chart().render(EVERYTHING, name="rel") == chart().render(EVERYTHING, name="rel")


def test_a_schedule_takes_the_parameters_of_its_pipeline():
    known = chart().schema["properties"]["schedule"]["properties"]["parameters"]["propertyNames"]["enum"]
    assert set(known) == set(PIPELINES["retrain"](Settings()).pipeline_spec.root.input_definitions.parameters)


def test_every_value_of_the_schema_has_a_default_and_every_default_is_in_the_schema():
    schema = chart().schema

    def known(node: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        node = schema["definitions"][node["$ref"].split("/")[-1]] if "$ref" in node else node
        for key, child in node.get("properties", {}).items():
            yield (*above, key)
            yield from known(child, (*above, key))

    without_default = {path for path in known(schema) if path[-2:] == ("limits", "cpu") or path == ("enabled",)}
    assert set(known(schema)) - without_default == set(PATHS)


WORDS = [
    None,
    "",
    " ",
    "x y",
    "a..b",
    "a.-b",
    "-",
    ".",
    "a:b",
    "a: b",
    "#",
    "null",
    "true",
    "no",
    "123",
    "1e3",
    "0x1F",
    "ü",
    "x" * 300,
    "{{ .Release.Name }}",
    "'\"",
    "a\nb: c",
    0,
    -1,
    1,
    1.5,
    1e6,
    10**30,
    True,
    False,
    [],
    ["a"],
    [None],
    {},
    {"a": None},
    {"a": 1},
]


def accepted_or_refused(values: dict[str, Any], name: str) -> bool:
    try:
        documents = rendered(values)
    except helm.HelmError:
        refused(values, name)
        return False
    check(documents)
    return True


@pytest.mark.parametrize("path", PATHS, ids=".".join)
@pytest.mark.parametrize("word", ["", "a..b", 1.5, ["a"], {"a": 1}], ids=repr)
def test_an_odd_value_is_rendered_well_or_refused_by_its_name(path, word):
    accepted_or_refused(merged(EVERYTHING, at(path, word)), path[-1])


def test_no_value_that_is_drawn_breaks_a_template():
    draw = random.Random(0)
    for _ in range(4 * FUZZ):
        first, second = draw.sample(PATHS, 2)
        values = merged(merged(EVERYTHING, at(first, draw.choice(WORDS))), at(second, draw.choice(WORDS)))
        try:
            documents = rendered(values)
        except helm.HelmError as error:
            assert not re.search("nil pointer|error converting|error calling (?!fail)", str(error)), (values, error)
        else:
            check(documents)


def block(cpu: Any = "1", memory: str = "1Gi", cpu_limit: Any = 8, memory_limit: str = "8Gi") -> dict[str, Any]:
    limits = {"cpu": cpu_limit, "memory": memory_limit}
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": limits}}


def cron(text: str) -> dict[str, Any]:
    return {"schedule": {"cron": text}}


LONG = "x" * 64
WRONG = {
    "a word nobody knows": ({"minio": {}}, "minio"),
    "no mode of S3": ({"s3": {"mode": "aws"}}, "mode"),
    "external S3 nowhere": ({"s3": {"mode": "external", "makeKeys": False}}, "endpoint"),
    "keys made for somebody else's S3": (
        {"s3": {"mode": "external", "endpoint": "https://s3.example.org"}},
        "makeKeys",
    ),
    "a password in an address": (
        {"s3": {**EXTERNAL["s3"], "endpoint": "https://me:secret@s3.example.org"}},
        "endpoint",
    ),
    "no bucket's name": ({"s3": {"bucket": "My Bucket"}}, "bucket"),
    "an image that moves": ({"image": {"tag": "latest"}}, "tag"),
    "no size": ({"triton": {"models": {"storage": "20 GB"}}}, "storage"),
    "nobody serves": ({"triton": {"replicas": 0}}, "replicas"),
    "half a core too many": ({"mlflow": block(cpu="half")}, "cpu"),
    "no core": ({"mlflow": block(cpu=0)}, "cpu"),
    "a core finer than a thousandth": ({"mlflow": block(cpu="0.0005")}, "cpu"),
    "more memory asked than allowed": ({"mlflow": block(memory="9Gi")}, "mlflow.resources: the request of 9Gi memory"),
    "the same in other units": ({"s3": {"minio": block(memory="8.6G", memory_limit="8Gi")}}, "s3.minio.resources"),
    "more cores asked than allowed": (
        {"triton": block(cpu="1500m", cpu_limit=1)},
        "triton.resources: the request of 1500m",
    ),
    "no MLflow at all": ({"mlflow": {"enabled": False}}, "url"),
    "a schedule of nothing": ({"schedule": {"enabled": True}}, "pipelineId"),
    "everything is false": ({"monitoring": {"falseSuccess": 1.5}}, "falseSuccess"),
    "a yes that is a word": ({"exporter": {"enabled": "yes"}}, "enabled"),
    "an account that cannot be": ({"pipelines": {"serviceAccount": "Wovr Pipeline"}}, "serviceAccount"),
    "an account with an empty part": ({"pipelines": {"serviceAccount": "a..b"}}, "serviceAccount"),
    "a Secret with a part that ends in a hyphen": (
        {"mlflow": {"database": {"existingSecret": "a.-b"}}},
        "existingSecret",
    ),
    "a class that cannot be": ({"triton": {"models": {"storageClass": "a_b"}}}, "storageClass"),
    "a label with a space": ({"monitoring": {"labels": {"release": "my prometheus"}}}, "release"),
    "a label that is too long": ({"monitoring": {"labels": {"release": LONG}}}, "release"),
    "a label's name with a space": ({"monitoring": {"labels": {"my release": "x"}}}, "my release"),
    "a label of the chart's own": (
        {"monitoring": {"labels": {"app.kubernetes.io/name": "x"}}},
        "app.kubernetes.io/name",
    ),
    "a namespace with a dot": ({"networkPolicy": {"monitoringNamespace": "a.b"}}, "monitoringNamespace"),
    "a tag within the repository": ({"image": {"repository": "wovr:0.2"}}, "repository"),
    "an address that ends nowhere": ({"image": {"repository": "registry//wovr"}}, "repository"),
    "a bucket with an empty part": ({"s3": {"bucket": "a..b"}}, "bucket"),
    "a region of two words": ({"s3": {"region": "us east"}}, "region"),
    "an S3 below a path": ({"s3": {**EXTERNAL["s3"], "endpoint": "https://example.org/s3"}}, "endpoint"),
    "an MLflow with a question": ({"mlflow": {"enabled": False, "url": "https://m.example.org/?a=b"}}, "url"),
    "pull secrets of everywhere, nameless": ({"global": {"imagePullSecrets": [{}]}}, "imagePullSecrets"),
    "a pull secret of everywhere that cannot be": ({"global": {"imagePullSecrets": ["a b"]}}, "imagePullSecrets"),
    "pull secrets by the word of Kubernetes": ({"image": {"pullSecrets": [{"name": "a"}]}}, "pullSecrets"),
    "S3 in the pod itself": ({"s3": {**EXTERNAL["s3"], "endpoint": "http://localhost:9000"}}, "s3.endpoint"),
    "MLflow in the pod itself": ({"mlflow": {"enabled": False, "url": "http://127.0.0.1:5000"}}, "mlflow.url"),
    "the account that makes the keys": ({"pipelines": {"serviceAccount": "rel-keys"}}, "pipelines.serviceAccount"),
    "a parameter that the pipeline lacks": ({"schedule": {"parameters": {"grop": {}}}}, "grop"),
    "a chart that is off and installed": ({"enabled": False}, "enabled"),
    "--set image.tag=110": (helm.parse_set_string("image.tag=110"), "tag"),
    "--set image.pullSecrets=mine": (helm.parse_set_string("image.pullSecrets=mine"), "pullSecrets"),
    "--set s3.minio=null": (helm.parse_set_string("s3.minio=null"), "minio"),
    "--set triton.enabled=off": (helm.parse_set_string("triton.enabled=off"), "enabled"),
    "a server of no policy": ({"policyServer": {"enabled": True}}, "policies"),
    "a policy at no address": ({"policyServer": {"enabled": True, "policies": ["tabletop-policy"]}}, "policies"),
    "a folder of somebody's machine": ({"policyServer": {"enabled": True, "policies": ["/srv/policy"]}}, "policies"),
    "an address beyond 255": ({"policyServer": {"allowFrom": {"cidrs": ["10.0.0.256/32"]}}}, "cidrs"),
    "an address without its length": ({"policyServer": {"allowFrom": {"cidrs": ["10.0.0.7"]}}}, "cidrs"),
    "tokens that another replica does not know": (
        {"policyServer": {**POLICIES, "replicas": 2}},
        "policyServer.blinding: tokens live in one replica",
        "policyServer.replicas to 1",
    ),
    "tokens and an autoscaler": (
        {"policyServer": {**POLICIES, "autoscaling": {"enabled": True}}},
        "policyServer.blinding: tokens live in one replica",
    ),
    "fewer policy servers at most than at least": (
        {"policyServer": {**POLICIES, "blinding": False, "autoscaling": {"enabled": True, "min": 5}}},
        "policyServer.autoscaling.min is 5, above max 4",
    ),
    "fewer at most than at least": ({"triton": {"autoscaling": {"enabled": True, "min": 5}}}, "autoscaling.min"),
}


@pytest.mark.parametrize("case", WRONG)
def test_nonsense_is_refused_by_its_name(case):
    refused(*WRONG[case])


CRONS = {
    "0 3 * * 1": "six fields",
    "0 0 3 * * 1 2027": "six fields",
    "@weekly": "six fields",
    "": "six fields",
    "0 0  3 * * 1": "six fields",
    "0 61 25 * * *": '"61" is no minute',
    "0 0 24 * * *": '"24" is no hour',
    "0 0 3 0 * *": '"0" is no day',
    "0 0 3 * 13 *": '"13" is no month',
    "0 0 3 * * 7": '"7" is no weekday',
    "0 0 3 * * L": '"L" is no weekday',
    "0 0 3 * FOO *": '"FOO" is no month',
    "0 0 3 * MON *": '"MON" is no month',
    "0 */0 * * * *": '"*/0" is no minute',
    "0 1, * * * *": '"" is no minute',
    "0 -5 * * * *": '"-5" is no minute',
    "0 0 22-5 * * *": '"22-5" runs backwards',
    "0 0 3 * * FRI-MON": '"FRI-MON" runs backwards',
    "0 0 3 30 2 *": "month 2 has no day 30",
    "0 0 3 31 11 ?": "month 11 has no day 31",
    "every monday at 3 o'clock x": "no second",
}


@pytest.mark.parametrize("text", CRONS)
def test_a_cron_that_kubeflow_would_refuse_or_never_reach_is_refused(text):
    refused(cron(text), "schedule.cron", CRONS[text])


@pytest.mark.parametrize("text", [text for text, reason in CRONS.items() if reason != "six fields"])
def test_wovr_schedule_refuses_the_same_crons(text):
    with pytest.raises(ClusterError):
        six_fields(text)


RIGHT: dict[str, dict[str, Any]] = {
    "policies of all kinds": {
        "policyServer": {
            "policies": ["models:/a_b-c@x.y", "models:/p/12", f"s3://wovr/trials/candidate/{64 * 'a'}"],
            "allowFrom": {"cidrs": ["0.0.0.0/0", "fd00::/8", "192.168.1.0/24"], "namespaces": ["1"]},
        }
    },
    "cores and a half": {"mlflow": block(cpu="1.5", cpu_limit="2")},
    "cores as a number": {"mlflow": block(cpu=1.5, cpu_limit=2)},
    "as much asked as allowed": {"mlflow": block(cpu="1500m", memory="8192Mi", cpu_limit="1.5")},
    "half a gibibyte": {"mlflow": block(memory="0.5Gi"), "pipelines": {"cache": {"storage": "1.5Ti"}}},
    "names that look like numbers": {
        "mlflow": {"database": {"existingSecret": "123"}},
        "pipelines": {"serviceAccount": "1e3"},
        "triton": {"models": {"storageClass": "1"}},
        "s3": {"bucket": "123", "region": "0x1"},
        "networkPolicy": {"monitoringNamespace": "1"},
        "image": {"repository": "1", "tag": "2", "pullSecrets": ["0"]},
        "monitoring": {"serviceMonitor": True, "labels": {"a": "1"}},
        "schedule": {**EVERYTHING["schedule"], "pipelineId": "7"},
    },
    "names that look like a yes": {
        "pipelines": {"serviceAccount": "true"},
        "networkPolicy": {"monitoringNamespace": "no"},
        "mlflow": {"database": {"existingSecret": "null"}, "experiment": "on"},
        "s3": {"bucket": "yes"},
    },
    "as --set writes it": helm.parse_set_string(
        "image.pullSecrets={one,two},triton.replicas=3,mlflow.resources.requests.cpu=1.5,monitoring.labels.release=x"
    ),
    "a chart around this one": {"enabled": True, "global": {"imageRegistry": "x", "imagePullSecrets": ["y"]}},
    "a registry with a port": {"image": {"repository": "localhost:5000/robots/wo__vr.x"}},
    "labels of all kinds": {"monitoring": {"rules": True, "labels": {"example.org/team": "a.B_c-1", "empty": ""}}},
    "S3 at an address of version 6": {"s3": {**EXTERNAL["s3"], "endpoint": "http://[fd00::1]:9000"}},
    "a night": cron("0 30 22-23,0-5 * * MON-FRI"),
    "names in small letters": cron("0 0 3 ? jan,jul sun"),
    "every ten minutes from five past": cron("0 5/10 * * * *"),
    "the last of February": cron("0 0 3 29 2 *"),
    "Mondays of February, too": cron("0 0 3 30 2 1"),
    "leading zeros": cron("00 05 03 01 01 00"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_a_server_takes_is_rendered(case):
    check(rendered(merged(EVERYTHING, RIGHT[case])))
    if text := RIGHT[case].get("schedule", {}).get("cron"):
        assert six_fields(text) == text, "wovr schedule takes it, too"


@pytest.mark.parametrize(
    ("name", "word"), [("a.b", "a.b"), ("1a", "1a"), ("a" * 47, "47 characters"), ("a" * 53, "53 characters")]
)
def test_a_release_that_cannot_name_a_service_or_a_stateful_set_is_refused(name, word):
    refused({}, "release name", word, name=name)


@pytest.mark.parametrize(
    ("name", "namespace"), [("a", "123"), ("true", "null"), ("no", "1e3"), ("a-1", "n" * 63), ("a" * 46, "n" * 63)]
)
def test_any_other_release_and_namespace_will_do(name, namespace):
    check(rendered(EVERYTHING, name, namespace))


def test_pods_reach_services_elsewhere_at_the_ports_of_their_addresses():
    elsewhere = {
        "s3": {**EXTERNAL["s3"], "endpoint": "https://s3.example.org:8333"},
        "mlflow": {"enabled": False, "url": "http://mlflow.example.org/prefix"},
    }
    (deny,) = [d for d in rendered(elsewhere) if d["metadata"]["name"] == "rel-deny"]
    assert [port["port"] for port in deny["spec"]["egress"][-1]["ports"]] == [8333, 80]
