"""``--set path=value``, as Istio's users write it."""

from typing import Any

import pytest

from meltemi.commands.failure import CommandError
from meltemi.commands.install import operator_spec
from meltemi.install.profiles import resolve


def test_paths_know_indexes_dots_in_names_and_types() -> None:
    spec = operator_spec(
        [],
        [
            "profile=demo",
            "components.ingressGateways[0].k8s.env[0].name=A",
            "components.ingressGateways[0].k8s.env[0].value=b",
            "components.ingressGateways[0].k8s.env[1].name=C",
            r"components.ingressGateways[0].k8s.serviceAnnotations.example\.com/a=x",
            "components.pilot.k8s.replicaCount=2",
        ],
        "",
    )
    assert spec == {
        "profile": "demo",
        "components": {
            "ingressGateways": [
                {
                    "k8s": {
                        "env": [{"name": "A", "value": "b"}, {"name": "C"}],
                        "serviceAnnotations": {"example.com/a": "x"},
                    }
                }
            ],
            "pilot": {"k8s": {"replicaCount": 2}},
        },
    }


def enabled(spec: dict[str, Any], key: str) -> dict[str, bool]:
    entries = resolve(spec)["components"][key]
    return {entry["name"]: bool(entry.get("enabled")) for entry in entries}


@pytest.mark.parametrize("name", [(), ("components.egressGateways[0].name=istio-egressgateway",)])
def test_a_gateway_may_be_meant_by_its_index(name: tuple[str, ...]) -> None:
    spec = operator_spec([], [*name, "components.egressGateways[0].enabled=true"], "")
    assert enabled(spec, "egressGateways") == {"istio-egressgateway": True}
    spec = operator_spec([], ["components.ingressGateways[0].enabled=false"], "")
    assert enabled(spec, "ingressGateways") == {"istio-ingressgateway": False}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("components.ingressGateways[1].name=b", "entry 0 comes before 1"),
        ("values.global.hub={", "the value is not YAML"),
        ("profile", "write path=value"),
    ],
)
def test_what_cannot_be_read_is_told(setting: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        operator_spec([], [setting], "")
