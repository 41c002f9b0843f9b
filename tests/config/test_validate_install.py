"""What is said of an IstioOperator that the installer could not follow."""

from typing import Any

import pytest

from meltemi.config.decode import load
from meltemi.model.origin import Level


def findings(**spec: Any) -> list[tuple[Level, str]]:
    resource = {
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "metadata": {"name": "mesh", "namespace": "istio-system"},
        "spec": spec,
    }
    return [(finding.level, str(finding)) for finding in load(resource)[1]]


@pytest.mark.parametrize(
    ("spec", "level", "says"),
    [
        ({"meshConfig": {"accesLogFile": "x"}}, Level.ERROR, "spec.meshConfig.accesLogFile"),
        ({"meshConfig": {"enableTracing": 3}}, Level.ERROR, "spec.meshConfig.enableTracing"),
        ({"values": {"pilto": {}}}, Level.ERROR, "did you mean pilot?"),
        ({"components": {"cni": {"enabled": True}}}, Level.WARNING, "is not part of this mesh"),
        ({"installPackagePath": "/charts"}, Level.WARNING, "installPackagePath: has no effect"),
    ],
)
def test_what_would_do_nothing_is_told(spec: dict[str, Any], level: Level, says: str) -> None:
    ((found, text),) = findings(**spec)
    assert found is level
    assert says in text


def test_what_istio_users_write_is_accepted() -> None:
    assert not findings(
        profile="demo",
        meshConfig={"accessLogFile": "/dev/stdout", "defaultConfig": {"tracing": {"sampling": 10}}},
        components={"cni": {"enabled": False}, "pilot": {"k8s": {"replicaCount": 2}}},
        values={"global": {"proxy": {"logLevel": "debug"}}, "pilot": {"traceSampling": 1}},
    )
