"""From an IstioOperator spec to manifests: profiles, merging, overlays."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meltemi.install.overlays import OverlayError, parse_path
from meltemi.install.profiles import UnknownProfileError, merge, resolve
from meltemi.install.render import Installation, render


def installed(spec: dict[str, Any]) -> Installation:
    return render("istio", "istio-system", spec, [])


def kinds(installation: Installation) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["kind"], m["metadata"]["name"]): m for m in installation.manifests}


@pytest.mark.parametrize(
    ("profile", "components"),
    [
        ("default", ["Base", "Pilot", "IngressGateways"]),
        ("demo", ["Base", "Pilot", "IngressGateways", "EgressGateways"]),
        ("minimal", ["Base", "Pilot"]),
        ("empty", []),
    ],
)
def test_each_profile_installs_its_components(profile: str, components: list[str]) -> None:
    assert [c.name for c in installed({"profile": profile}).components] == components


def test_an_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(UnknownProfileError, match=r"'prod'.*default, demo, empty, minimal"):
        resolve({"profile": "prod"})


def test_the_users_values_win_over_the_profile() -> None:
    found = kinds(
        installed(
            {
                "profile": "demo",
                "meshConfig": {
                    "accessLogFile": "",
                    "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
                },
            }
        )
    )
    mesh = yaml.safe_load(found["ConfigMap", "istio"]["data"]["mesh"])
    assert mesh["accessLogFile"] == ""
    assert mesh["outboundTrafficPolicy"] == {"mode": "REGISTRY_ONLY"}
    assert mesh["rootNamespace"] == "istio-system"
    assert mesh["defaultConfig"]["discoveryAddress"] == "istiod.istio-system.svc:15012"


def test_gateways_merge_by_name_and_new_ones_are_added() -> None:
    spec = {
        "components": {
            "ingressGateways": [
                {"name": "istio-ingressgateway", "k8s": {"replicaCount": 2}},
                {
                    "name": "private",
                    "enabled": True,
                    "label": {"istio": "private"},
                    "namespace": "edge",
                },
            ]
        }
    }
    found = kinds(installed(spec))
    ingress = found["Deployment", "istio-ingressgateway"]
    assert ingress["spec"]["replicas"] == 2
    assert found["Service", "istio-ingressgateway"]["spec"]["type"] == "LoadBalancer"
    private = found["Deployment", "private"]
    assert private["metadata"]["namespace"] == "edge"
    assert private["spec"]["template"]["metadata"]["labels"]["istio"] == "private"


def test_a_gateway_beside_the_profiles_own_is_made_like_it() -> None:
    """Ports, type, resources and scaling are not to be written again, as in Istio."""
    entry = {"name": "second", "enabled": True, "k8s": {"service": {"type": "NodePort"}}}
    found = kinds(installed({"components": {"ingressGateways": [entry]}}))
    own = found["Service", "istio-ingressgateway"]["spec"]
    second = found["Service", "second"]["spec"]
    assert (second["type"], second["ports"]) == ("NodePort", own["ports"])
    assert second["selector"]["app"] == "second"
    assert ("HorizontalPodAutoscaler", "second") in found


@pytest.mark.parametrize("where", ["values", "unvalidatedValues"])
def test_helms_values_are_another_way_to_say_the_same(where: str) -> None:
    ingress = {
        "type": "NodePort",
        "serviceAnnotations": {"a": "b"},
        "env": {"X": 1},
        "labels": {"team": "edge"},
    }
    pilot = {"replicaCount": 3, "rollingMaxSurge": 1, "nodeSelector": {"disk": "ssd"}}
    values = {
        "gateways": {"istio-ingressgateway": ingress},
        "pilot": {**pilot, "autoscaleEnabled": False},
        "global": {"logging": {"level": "default:debug"}},
    }
    found = kinds(installed({where: values}))
    service = found["Service", "istio-ingressgateway"]
    assert service["metadata"]["annotations"] == {"a": "b"}
    assert service["spec"]["type"] == "NodePort"
    gateway = found["Deployment", "istio-ingressgateway"]["spec"]["template"]
    assert gateway["metadata"]["labels"]["team"] == "edge"
    assert gateway["spec"]["containers"][0]["env"] == [{"name": "X", "value": "1"}]
    istiod = found["Deployment", "istiod"]["spec"]
    assert (istiod["replicas"], istiod["strategy"]) == (3, {"rollingUpdate": {"maxSurge": 1}})
    assert istiod["template"]["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert "--log_output_level=default:debug" in istiod["template"]["spec"]["containers"][0]["args"]
    over = {"components": {"pilot": {"k8s": {"replicaCount": 5}}}}
    istiod = kinds(installed({where: values, **over}))["Deployment", "istiod"]["spec"]
    assert istiod["replicas"] == 5


def test_istiods_service_has_its_annotations() -> None:
    k8s = {"serviceAnnotations": {"a": "b"}}
    found = kinds(installed({"components": {"pilot": {"k8s": k8s}}}))
    assert found["Service", "istiod"]["metadata"]["annotations"] == {"a": "b"}


def test_a_revision_names_everything_that_must_not_clash() -> None:
    found = kinds(installed({"revision": "canary"}))
    assert ("Deployment", "istiod-canary") in found
    assert ("ConfigMap", "istio-canary") in found
    hook = found["MutatingWebhookConfiguration", "istio-sidecar-injector-canary"]
    assert [h["name"].split(".")[0] for h in hook["webhooks"]] == ["rev", "rev"]


def test_the_ingress_service_keeps_the_ports_that_people_script_against() -> None:
    service = kinds(installed({}))["Service", "istio-ingressgateway"]
    ports = {p["name"]: (p["port"], p["targetPort"]) for p in service["spec"]["ports"]}
    assert ports == {"status-port": (15021, 15021), "http2": (80, 8080), "https": (443, 8443)}


def test_an_autoscaled_deployment_leaves_replicas_to_the_autoscaler() -> None:
    found = kinds(installed({"profile": "default"}))
    assert ("HorizontalPodAutoscaler", "istiod") in found
    assert "replicas" not in found["Deployment", "istiod"]["spec"]


def overlaid(*patches: dict[str, Any]) -> dict[str, Any]:
    overlay = {"kind": "Deployment", "name": "istiod", "patches": list(patches)}
    found = kinds(installed({"components": {"pilot": {"k8s": {"overlays": [overlay]}}}}))
    return found["Deployment", "istiod"]


def test_overlays_set_append_and_remove_by_path() -> None:
    container = "spec.template.spec.containers.[name:discovery]"
    made = overlaid(
        {"path": f"{container}.args.[-1]", "value": "--log_as_json"},
        {"path": f"{container}.env.[name:REVISION].value", "value": "mine"},
        {"path": f"{container}.readinessProbe"},
        {"path": "metadata.annotations", "value": {"a": "b"}},
    )
    discovery = made["spec"]["template"]["spec"]["containers"][0]
    assert discovery["args"][-1] == "--log_as_json"
    assert {"name": "REVISION", "value": "mine"} in discovery["env"]
    assert "readinessProbe" not in discovery
    assert made["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (
            {"path": "spec.template.spec.containers.[name:nope].image", "value": "x"},
            "('name', 'nope')",
        ),
        ({"value": "x"}, "has no path"),
    ],
)
def test_an_overlay_that_does_not_fit_says_what_is_there(
    patch: dict[str, Any], message: str
) -> None:
    with pytest.raises(OverlayError) as caught:
        overlaid(patch)
    assert message in str(caught.value)


def test_an_overlay_for_an_object_that_is_not_made_lists_those_that_are() -> None:
    spec = {"components": {"pilot": {"k8s": {"overlays": [{"kind": "Service", "name": "pilot"}]}}}}
    with pytest.raises(OverlayError, match=r"Service/pilot.*Service/istiod"):
        installed(spec)


def test_paths_know_names_indexes_selectors_and_escaped_dots() -> None:
    assert parse_path(r"a.b\.c.[0].[name:x].[-1]") == ["a", "b.c", 0, ("name", "x"), -1]


def test_null_removes_what_the_profile_sets() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}) == {"a": {"c": 2}}


def test_rendering_does_not_change_the_users_spec() -> None:
    spec = {"components": {"pilot": {"k8s": {"env": [{"name": "A", "value": "b"}]}}}}
    before = yaml.safe_dump(spec)
    installed(spec)
    assert yaml.safe_dump(spec) == before
