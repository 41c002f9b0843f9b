"""Decoding, defaults and rules of built-in kinds."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import World, deployment, pod

Object = dict[str, Any]


def service(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ports": [{"port": 80}], **spec},
    }


def container(**fields: Any) -> Object:
    return {"name": "app", "image": "example/app:1", **fields}


# -- unknown fields -------------------------------------------------------------------------------


def test_unknown_field_strict(world: World) -> None:
    """A typo is a 400 that names every unknown field by its path."""
    obj = deployment(replica=1)
    obj["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(ApiError) as caught:
        world.decode(obj)
    assert caught.value.code == 400
    assert caught.value.message == (
        'Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: '
        'unknown field "spec.template.spec.containers[0].imagee", unknown field "spec.replica"'
    )


def test_unknown_field_warn_and_ignore(world: World) -> None:
    """Warn drops the field and says so; Ignore just drops it."""
    decoded, warnings = world.decode(deployment(replica=1), "Warn")
    assert warnings == ['unknown field "spec.replica"']
    assert "replica" not in decoded["spec"]
    assert world.decode(deployment(replica=1), "Ignore")[1] == []


def test_free_form_fields_are_kept(world: World) -> None:
    """managedFields and label maps have no fixed fields."""
    obj = pod()
    obj["metadata"]["labels"] = {"anything": "goes"}
    obj["metadata"]["managedFields"] = [{"manager": "m", "fieldsV1": {"f:spec": {"f:x": {}}}}]
    decoded, warnings = world.decode(obj)
    assert warnings == []
    assert decoded["metadata"]["managedFields"][0]["fieldsV1"] == {"f:spec": {"f:x": {}}}


def test_null_means_absent(world: World) -> None:
    """A null gets the default, as if it were not there."""
    decoded, _ = world.decode(deployment(replicas=None, strategy=None))
    assert decoded["spec"]["replicas"] == 1
    assert decoded["spec"]["strategy"]["type"] == "RollingUpdate"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replicas": "x"}, 'spec.replicas: Invalid value: "x": must be of type integer'),
        ({"paused": 1}, "spec.paused: Invalid value: 1: must be of type boolean"),
        ({"strategy": []}, "spec.strategy: Invalid value: []: must be of type object"),
        ({"replicas": 1 << 40}, "spec.replicas: Invalid value: 1099511627776: must be a number of"),
    ],
)
def test_wrong_type(world: World, spec: Object, message: str) -> None:
    """A wrong type is named with its path and value, before anything else is looked at."""
    with pytest.raises(ApiError) as caught:
        world.decode(deployment(**spec))
    assert caught.value.code == 422
    assert message in caught.value.message


# -- defaults -------------------------------------------------------------------------------------


def test_pod_defaults(world: World) -> None:
    """What `kubectl get -o yaml` shows of a minimal pod."""
    probe = {"httpGet": {"port": 80}}
    obj = pod(containers=[container(readinessProbe=probe, ports=[{"containerPort": 80}])])
    spec = world.decode(obj)[0]["spec"]
    assert spec["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert spec["dnsPolicy"] == "ClusterFirst"
    assert spec["enableServiceLinks"] is True
    made = spec["containers"][0]
    assert made["imagePullPolicy"] == "IfNotPresent"
    assert made["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert made["readinessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("app", "Always"),
        ("app:latest", "Always"),
        ("host:5000/app", "Always"),
        ("host:5000/app:v1", "IfNotPresent"),
        ("app@sha256:aa", "IfNotPresent"),
    ],
)
def test_pull_policy_depends_on_the_tag(world: World, image: str, policy: str) -> None:
    decoded, _ = world.decode(pod(containers=[{"name": "a", "image": image}]))
    assert decoded["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_service_defaults(world: World) -> None:
    spec = world.decode(service())[0]["spec"]
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert spec["type"] == "ClusterIP"
    assert spec["sessionAffinity"] == "None"
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    assert spec["internalTrafficPolicy"] == "Cluster"
    assert "externalTrafficPolicy" not in spec
    balanced = world.decode(service(type="LoadBalancer"))[0]["spec"]
    assert balanced["externalTrafficPolicy"] == "Cluster"


def test_secret_string_data_becomes_data(world: World) -> None:
    """stringData wins over data and is never stored."""
    obj = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "default"},
        "data": {"a": base64.b64encode(b"old").decode()},
        "stringData": {"a": "new"},
    }
    decoded, _ = world.decode(obj)
    assert decoded["type"] == "Opaque"
    assert decoded["data"] == {"a": base64.b64encode(b"new").decode()}
    assert "stringData" not in decoded


def test_defaults_are_stable(world: World) -> None:
    """Defaulting what was defaulted changes nothing."""
    for obj in (deployment(), pod(), service(type="LoadBalancer")):
        once, _ = world.decode(obj)
        assert world.decode(once)[0] == once


# -- rules ----------------------------------------------------------------------------------------


def test_good_objects_pass(world: World) -> None:
    assert world.check(pod()) == []
    assert world.check(deployment()) == []
    assert world.check(service()) == []


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (pod(name="Web_1"), "metadata.name: Invalid value"),
        (pod(containers=[]), "spec.containers: Required value"),
        (
            pod(containers=[container(), container()]),
            'spec.containers[1].name: Duplicate value: "app"',
        ),
        (pod(containers=[{"name": "a"}]), "spec.containers[0].image: Required value"),
        (
            pod(containers=[container(volumeMounts=[{"name": "v", "mountPath": "/v"}])]),
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
        (
            pod(containers=[container(ports=[{"containerPort": 70000}])]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and "
            "65535, inclusive",
        ),
        (
            pod(containers=[container(resources={"limits": {"cpu": "1x"}})]),
            'spec.containers[0].resources.limits.cpu: Invalid value: "1x": quantities must match',
        ),
        (
            pod(
                containers=[
                    container(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}})
                ]
            ),
            "must be less than or equal to cpu limit of 1500m",
        ),
        (
            pod(restartPolicy="Sometimes"),
            'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always"',
        ),
        (
            pod(containers=[container(imagePullPolicy="x")]),
            'spec.containers[0].imagePullPolicy: Unsupported value: "x"',
        ),
        (
            pod(containers=[container(livenessProbe={"periodSeconds": 3})]),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            pod(volumes=[{"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}}]),
            "may not specify more than 1 volume type",
        ),
        (
            deployment(selector={"matchLabels": {"app": "other"}}),
            "`selector` does not match template `labels`",
        ),
        (
            deployment(replicas=-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal",
        ),
        (
            deployment(selector={}),
            "spec.selector: Invalid value: {}: empty selector is invalid",
        ),
        (service(ports=[]), "spec.ports: Required value"),
        (
            service(ports=[{"port": 80}, {"port": 81}]),
            "spec.ports[0].name: Required value",
        ),
        (
            service(ports=[{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]),
            'spec.ports[1].name: Duplicate value: "a"',
        ),
        (service(ports=[{"port": 0}]), "spec.ports[0].port: Invalid value: 0"),
        (service(type="Funny"), 'spec.type: Unsupported value: "Funny"'),
        (
            service(type="ExternalName", ports=[]),
            "spec.externalName: Required value",
        ),
        (service(selector={"a b": "c"}), 'spec.selector: Invalid value: "a b": name part must'),
    ],
)
def test_rules(world: World, obj: Object, message: str) -> None:
    """Each broken rule is told with the field's path, in Kubernetes' words."""
    errors = world.check(obj)
    assert any(message in error for error in errors), errors


def test_label_syntax(world: World) -> None:
    obj = pod()
    obj["metadata"]["labels"] = {"a": "b c", "x/y/z": "v"}
    errors = world.check(obj)
    assert any(e.startswith('metadata.labels: Invalid value: "b c": a valid label') for e in errors)
    assert any('metadata.labels: Invalid value: "x/y/z": prefix part' in e for e in errors)


def test_required_is_not_asked_of_status(world: World) -> None:
    """A status may lack what the schema calls required; a spec may not."""
    obj = {**pod(), "status": {"conditions": [{"type": "Ready"}]}}
    assert world.check(obj) == []


def test_immutable_fields(world: World) -> None:
    """Selector, clusterIP, roleRef, and a pod's command stay as they are."""
    before, after = deployment(), deployment(selector={"matchLabels": {"app": "web", "x": "y"}})
    after["spec"]["template"]["metadata"]["labels"]["x"] = "y"
    assert any("spec.selector: Invalid value" in e for e in world.check_update(after, before))
    errors = world.check_update(service(clusterIP="10.96.0.9"), service(clusterIP="10.96.0.8"))
    assert errors == ['spec.clusterIPs[0]: Invalid value: ["10.96.0.9"]: may not change once set']
    changed = pod(containers=[container(image="example/app:2")])
    assert world.check_update(changed, pod()) == []
    errors = world.check_update(pod(containers=[container(command=["x"])]), pod())
    assert errors and errors[0].startswith("spec: Forbidden: pod updates may not change fields")


def test_immutable_config_map(world: World) -> None:
    def config(data: dict[str, str], **more: Any) -> Object:
        metadata = {"name": "c", "namespace": "default"}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, **more}

    before = config({"a": "1"}, immutable=True)
    assert world.check_update(config({"a": "2"}, immutable=True), before) == [
        "data: Forbidden: field is immutable when `immutable` is set"
    ]
    assert world.check_update(config({"a": "2"}), config({"a": "1"})) == []
