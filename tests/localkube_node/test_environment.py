"""Environment variables, field paths and quantities."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from localkube.node.environment import (
    MissingReference,
    NodeResources,
    build_environment,
    build_service_variables,
    expand,
    parse_quantity,
    resolve_field,
    resolve_resource,
)

NODE = NodeResources(cpu=Decimal(2), memory=Decimal(2**30))
POD: dict[str, Any] = {
    "metadata": {
        "name": "web-1",
        "namespace": "shop",
        "uid": "u1",
        "labels": {"b": "2", "a": 'say "hi"'},
        "annotations": {"x/y": "z"},
    },
    "spec": {"nodeName": "node0", "serviceAccountName": "sa", "containers": []},
    "status": {"podIP": "10.244.0.2", "hostIP": "172.30.0.1", "podIPs": [{"ip": "10.244.0.2"}]},
}


def nothing(_kind: str, _name: str) -> None:
    return None


def build(container: dict[str, Any], lookup: Any = nothing) -> dict[str, str]:
    return build_environment(POD, container, lookup, NODE, {})


def test_references_see_earlier_variables_only() -> None:
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(C)-$$(A)"},
        {"name": "C", "value": "3"},
    ]
    assert build({"env": env}) == {"A": "1", "B": "1-$(C)-$(A)", "C": "3"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web-1"),
        ("metadata.uid", "u1"),
        ("metadata.labels['b']", "2"),
        ("metadata.annotations['x/y']", "z"),
        ("metadata.labels", 'a="say \\"hi\\""\nb="2"'),
        ("spec.serviceAccountName", "sa"),
        ("status.podIPs", "10.244.0.2"),
    ],
)
def test_field_paths(path: str, value: str) -> None:
    assert resolve_field(POD, path) == value


def test_an_unknown_field_path_is_reported() -> None:
    with pytest.raises(MissingReference, match=r"spec\.secrets"):
        resolve_field(POD, "spec.secrets")


def test_env_from_has_prefixes_and_own_variables_win() -> None:
    container = {
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
        "env": [{"name": "KEY", "value": "own"}],
    }
    data = {("ConfigMap", "c"): {"X": "1"}, ("Secret", "s"): {"KEY": "secret"}}
    assert build(container, lambda k, n: data[k, n]) == {"P_X": "1", "KEY": "own"}


def test_a_missing_key_is_an_error_unless_optional() -> None:
    reference = {"name": "c", "key": "k"}
    variable = {"name": "A", "valueFrom": {"configMapKeyRef": reference}}
    with pytest.raises(MissingReference, match='configmap "c" not found'):
        build({"env": [variable]})
    with pytest.raises(MissingReference, match="couldn't find key k in ConfigMap shop/c"):
        build({"env": [variable]}, lambda _k, _n: {})
    optional = {"name": "A", "valueFrom": {"configMapKeyRef": {**reference, "optional": True}}}
    assert build({"env": [optional]}) == {}


def test_resource_fields_are_divided_and_rounded_up() -> None:
    container = {"resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}
    assert resolve_resource(container, {"resource": "limits.cpu"}, NODE) == "2"
    assert resolve_resource(container, {"resource": "limits.cpu", "divisor": "1m"}, NODE) == "1500"
    reference = {"resource": "requests.memory", "divisor": "1Mi"}
    assert resolve_resource(container, reference, NODE) == "64"
    assert resolve_resource({}, {"resource": "limits.memory"}, NODE) == str(2**30)


@pytest.mark.parametrize(
    ("text", "value"), [("100m", "0.1"), ("1Gi", "1073741824"), ("2e3", "2000"), (5, "5")]
)
def test_quantities(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="5 apples"):
        parse_quantity("5 apples")


def test_expand_keeps_what_it_does_not_know() -> None:
    assert expand("$(A) $(B) $A", {"A": "1"}) == "1 $(B) $A"


def test_service_variables_always_name_the_api_server() -> None:
    def service(namespace: str, name: str, ip: str) -> dict[str, Any]:
        ports = [{"port": 443, "name": "https"}]
        meta = {"namespace": namespace, "name": name}
        return {"metadata": meta, "spec": {"clusterIP": ip, "ports": ports}}

    services = [
        service("default", "kubernetes", "10.96.0.1"),
        service("shop", "my-db", "10.96.0.9"),
        service("other", "x", "10.96.0.8"),
    ]
    values = build_service_variables(services, "shop", links=True)
    assert values["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert values["KUBERNETES_SERVICE_PORT"] == "443"
    assert values["MY_DB_PORT_443_TCP_ADDR"] == "10.96.0.9"
    assert values["MY_DB_SERVICE_PORT_HTTPS"] == "443"
    assert "X_SERVICE_HOST" not in values
    assert "MY_DB_SERVICE_HOST" not in build_service_variables(services, "shop", links=False)
