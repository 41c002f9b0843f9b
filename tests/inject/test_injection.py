"""What an injected pod looks like, and which pods are refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
import yaml

from meltemi.inject import (
    InjectionConfig,
    InjectionResult,
    inject,
    inject_resource,
    parse_injection_config,
)
from meltemi.model.mesh import MeshConfig, ProxyConfig
from meltemi.model.topology import ProxyImage

ENABLED = {"istio-injection": "enabled"}
MESH = MeshConfig()


def make_pod(**spec: Any) -> dict[str, Any]:
    annotations = spec.pop("annotations", {})
    labels = spec.pop("labels", {})
    return {
        "metadata": {
            "generateName": "reviews-v1-5c7-",
            "labels": {"app": "reviews", "version": "v1", "pod-template-hash": "5c7", **labels},
            "annotations": annotations,
            "ownerReferences": [
                {
                    "kind": "ReplicaSet",
                    "apiVersion": "apps/v1",
                    "name": "reviews-v1-5c7",
                    "controller": True,
                }
            ],
        },
        "spec": {
            "containers": [
                {
                    "name": "reviews",
                    "image": "reviews:1",
                    "ports": [{"containerPort": 9080, "name": "http"}],
                }
            ],
            **spec,
        },
    }


def run(
    pod: dict[str, Any], config: InjectionConfig | None = None, mesh: MeshConfig = MESH, **more: Any
) -> InjectionResult:
    request = {"object": pod, "namespace": "bookinfo"}
    return inject(request, ENABLED, config or InjectionConfig(), mesh, **more)


def injected(
    pod: dict[str, Any], config: InjectionConfig | None = None, mesh: MeshConfig = MESH, **more: Any
) -> dict[str, Any]:
    before = copy.deepcopy(pod)
    result = run(pod, config, mesh, **more)
    assert pod == before, "the request's object is never changed"
    assert result.allowed and result.patch, result
    made: dict[str, Any] = jsonpatch.apply_patch(pod, json.loads(json.dumps(result.patch)))
    return made


def proxy_of(pod: dict[str, Any]) -> dict[str, Any]:
    containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
    found: dict[str, Any] = next(c for c in containers if c["name"] == "istio-proxy")
    return found


def env_of(pod: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in proxy_of(pod)["env"]}


def test_the_proxy_is_the_second_container() -> None:
    """The application comes first, the proxy second, capture is an init container."""
    made = injected(make_pod())
    images = [c["image"] for c in made["spec"]["containers"]]
    assert images == ["reviews:1", "docker.io/meltemi/proxy:0.1.0"]
    (init,) = made["spec"]["initContainers"]
    assert init["args"][0] == "istio-iptables"
    assert set(init["securityContext"]["capabilities"]["add"]) == {"NET_ADMIN", "NET_RAW"}
    context = proxy_of(made)["securityContext"]
    assert (context["runAsUser"], context["capabilities"]) == (1337, {"drop": ["ALL"]})


def test_labels_annotations_and_identity() -> None:
    """Istio's labels and annotations, and the workload's name from its owner."""
    made = injected(make_pod())
    labels, annotations = made["metadata"]["labels"], made["metadata"]["annotations"]
    assert labels["security.istio.io/tlsMode"] == "istio"
    assert labels["service.istio.io/canonical-name"] == "reviews"
    assert labels["service.istio.io/canonical-revision"] == "v1"
    assert annotations["istio.io/rev"] == "default"
    assert annotations["kubectl.kubernetes.io/default-container"] == "reviews"
    assert annotations["prometheus.io/port"] == "15020"
    status = json.loads(annotations["sidecar.istio.io/status"])
    assert status["containers"] == ["istio-proxy"] and "istio-token" in status["volumes"]
    env = env_of(made)
    assert env["ISTIO_META_WORKLOAD_NAME"] == "reviews-v1"
    assert env["ISTIO_META_OWNER"].endswith("/namespaces/bookinfo/deployments/reviews-v1")
    assert json.loads(env["PROXY_CONFIG"])["discoveryAddress"] == "istiod.istio-system.svc:15012"


def test_every_mount_has_its_volume() -> None:
    """No mount without a volume, no volume twice, the token's audience is the CA's."""
    made = injected(make_pod(volumes=[{"name": "data", "emptyDir": {}}]))
    names = [volume["name"] for volume in made["spec"]["volumes"]]
    assert len(names) == len(set(names)) and names[0] == "data"
    assert {mount["name"] for mount in proxy_of(made)["volumeMounts"]} <= set(names)
    token = next(v for v in made["spec"]["volumes"] if v["name"] == "istio-token")
    (source,) = token["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "istio-ca"


def test_injecting_twice_changes_nothing() -> None:
    """An injected pod is left alone."""
    result = run(injected(make_pod()))
    assert (result.patch, result.allowed) == (None, True)
    assert result.reason == "the pod has a proxy already"


def test_probes_go_through_the_health_port() -> None:
    """HTTP, TCP and gRPC probes and HTTP hooks are rewritten; exec and other hosts are not."""
    pod = make_pod()
    pod["spec"]["containers"][0] |= {
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "http", "scheme": "HTTPS"},
            "periodSeconds": 3,
            "timeoutSeconds": 2,
        },
        "readinessProbe": {"tcpSocket": {"port": 9080}},
        "startupProbe": {"grpc": {"port": 9081, "service": "ready"}},
        "lifecycle": {
            "preStop": {"httpGet": {"path": "/bye", "port": 9080}},
            "postStart": {"exec": {"command": ["true"]}},
        },
    }
    pod["spec"]["containers"].append(
        {
            "name": "other",
            "livenessProbe": {"exec": {"command": ["true"]}},
            "readinessProbe": {"httpGet": {"host": "example.com", "port": 80}},
        }
    )
    made = injected(pod)
    app, other = made["spec"]["containers"][:2]
    assert app["livenessProbe"] == {
        "httpGet": {"path": "/app-health/reviews/livez", "port": 15021},
        "periodSeconds": 3,
        "timeoutSeconds": 2,
    }
    assert app["readinessProbe"]["httpGet"]["path"] == "/app-health/reviews/readyz"
    assert "tcpSocket" not in app["readinessProbe"]
    assert app["lifecycle"]["preStop"]["httpGet"]["path"] == "/app-lifecycle/reviews/prestopz"
    assert app["lifecycle"]["postStart"] == {"exec": {"command": ["true"]}}
    assert other == pod["spec"]["containers"][1]
    probes = json.loads(env_of(made)["ISTIO_KUBE_APP_PROBERS"])
    assert probes["/app-health/reviews/livez"] == {
        "httpGet": {"path": "/health", "port": 9080, "scheme": "HTTPS"},
        "periodSeconds": 3,
        "timeoutSeconds": 2,
    }
    assert probes["/app-health/reviews/startupz"]["grpc"] == {"port": 9081, "service": "ready"}


def test_probes_stay_when_asked() -> None:
    """``rewriteAppHTTPProbers: "false"`` leaves them."""
    pod = make_pod(annotations={"sidecar.istio.io/rewriteAppHTTPProbers": "false"})
    probe = {"httpGet": {"path": "/health", "port": 9080}}
    pod["spec"]["containers"][0]["livenessProbe"] = probe
    made = injected(pod)
    assert made["spec"]["containers"][0]["livenessProbe"] == probe
    assert "ISTIO_KUBE_APP_PROBERS" not in env_of(made)


def test_the_applications_metrics_are_merged() -> None:
    """Its scrape annotations move to the agent, the pod's point at the agent."""
    own = {"prometheus.io/scrape": "true", "prometheus.io/port": "9080", "prometheus.io/path": "/m"}
    made = injected(make_pod(annotations=own))
    assert json.loads(env_of(made)["ISTIO_PROMETHEUS_ANNOTATIONS"]) == {
        "scrape": "true",
        "port": "9080",
        "path": "/m",
    }
    assert made["metadata"]["annotations"]["prometheus.io/path"] == "/stats/prometheus"
    kept = injected(make_pod(annotations={**own, "prometheus.istio.io/merge-metrics": "false"}))
    assert kept["metadata"]["annotations"]["prometheus.io/port"] == "9080"
    refused = injected(make_pod(annotations={"prometheus.io/scrape": "false"}))
    assert refused["metadata"]["annotations"]["prometheus.io/scrape"] == "false"


def test_annotations_shape_the_proxy() -> None:
    """Image, resources, log level, capture and readiness follow the pod's annotations."""
    made = injected(
        make_pod(
            annotations={
                "sidecar.istio.io/proxyImage": "example.com/proxy:dev",
                "sidecar.istio.io/proxyCPU": "50m",
                "sidecar.istio.io/proxyMemoryLimit": "256Mi",
                "sidecar.istio.io/logLevel": "debug",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "3306, 5432",
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
                "traffic.sidecar.istio.io/excludeInboundPorts": "22",
                "readiness.status.sidecar.istio.io/periodSeconds": "7",
                "sidecar.istio.io/userVolume": '[{"name": "extra", "emptyDir": {}}]',
                "sidecar.istio.io/userVolumeMount": '[{"name": "extra", "mountPath": "/extra"}]',
                "sidecar.istio.io/bootstrapOverride": "my-bootstrap",
                "proxy.istio.io/config": "concurrency: 1\nproxyMetadata:\n  A: b\n",
            }
        )
    )
    proxy = proxy_of(made)
    assert proxy["image"] == "example.com/proxy:dev"
    assert proxy["resources"] == {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi"}}
    assert "--proxyLogLevel=debug" in proxy["args"]
    assert proxy["readinessProbe"]["periodSeconds"] == 7
    arguments = made["spec"]["initContainers"][0]["args"]
    flags = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert (flags["-o"], flags["-i"]) == ("3306,5432", "10.0.0.0/8")
    assert flags["-d"].split(",") == ["15090", "15021", "15020", "22"]
    assert {"extra", "custom-bootstrap-volume"} <= {v["name"] for v in made["spec"]["volumes"]}
    assert env_of(made)["A"] == "b"
    assert json.loads(env_of(made)["PROXY_CONFIG"])["concurrency"] == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sidecar.istio.io/proxyCPU", "lots", "is not a Kubernetes quantity"),
        ("sidecar.istio.io/logLevel", "loud", "is not one of trace, debug"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80,http", "has 'http'"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/64", "has '10.0.0.0/64'"),
        ("status.sidecar.istio.io/port", "70000", "is not a whole number from 1 to 65535"),
        ("sidecar.istio.io/interceptionMode", "TPROXY", "TPROXY is not available"),
        ("sidecar.istio.io/rewriteAppHTTPProbers", "maybe", 'neither "true" nor "false"'),
        ("sidecar.istio.io/userVolume", "{", "is not JSON"),
        ("proxy.istio.io/config", "[1]", "is not a mapping"),
        ("proxy.istio.io/config", "a: [", "is not YAML"),
        ("proxy.istio.io/config", "concurrency: many", "concurrency"),
        ("inject.istio.io/templates", "sidecar,nope", 'there is no template "nope"'),
    ],
)
def test_wrong_annotations_refuse_the_pod(name: str, value: str, message: str) -> None:
    """The refusal names the annotation and quotes the value; there is no patch."""
    result = run(make_pod(annotations={name: value}))
    assert not result.allowed and result.patch is None
    assert message in result.error and result.error.startswith("the proxy cannot be injected")


def test_an_unknown_proxy_config_field_is_a_warning() -> None:
    """A misspelt field does not stop the pod; the warning proposes the right one."""
    result = run(make_pod(annotations={"proxy.istio.io/config": "concurency: 1"}))
    assert result.allowed
    assert any("concurency" in w and "concurrency" in w for w in result.warnings), result.warnings


def test_an_unresolvable_probe_port_refuses_the_pod() -> None:
    """A probe of a port name that the container lacks is named with its container."""
    pod = make_pod()
    pod["spec"]["containers"][0]["livenessProbe"] = {"httpGet": {"port": "web"}}
    assert "container reviews, livenessProbe: port 'web'" in run(pod).error


@pytest.mark.covers(
    "MeshConfig.defaultConfig.statusPort",
    "MeshConfig.defaultConfig.meshId",
    "MeshConfig.defaultConfig.image.imageType",
    "MeshConfig.defaultConfig.interceptionMode",
    "MeshConfig.enablePrometheusMerge",
)
def test_the_meshs_own_settings_shape_the_pod() -> None:
    """Ports, the mesh's name, the image's variant, no capture, metrics that are not merged."""
    usual = injected(make_pod(annotations={"prometheus.io/scrape": "true"}))
    assert usual["metadata"]["annotations"]["prometheus.io/port"] == "15020"
    assert "initContainers" in usual["spec"]
    mesh = MeshConfig(
        enable_prometheus_merge=False,
        default_config=ProxyConfig(
            status_port=15055,
            mesh_id="shop",
            image=ProxyImage(image_type="debug"),
            interception_mode="NONE",
        ),
    )
    made = injected(make_pod(annotations={"prometheus.io/scrape": "true"}), mesh=mesh)
    assert env_of(made)["ISTIO_META_MESH_ID"] == "shop"
    assert json.loads(env_of(made)["PROXY_CONFIG"])["statusPort"] == 15055
    assert proxy_of(made)["image"].endswith("-debug")
    assert "initContainers" not in made["spec"]
    assert "prometheus.io/port" not in made["metadata"]["annotations"]


@pytest.mark.covers(
    "MeshConfig.defaultConfig.holdApplicationUntilProxyStarts",
)
def test_hold_application_puts_the_proxy_first() -> None:
    """With ``holdApplicationUntilProxyStarts`` the proxy starts first and its hook waits."""
    mesh = MeshConfig(default_config=ProxyConfig(hold_application_until_proxy_starts=True))
    made = injected(make_pod(), mesh=mesh)
    assert [c["name"] for c in made["spec"]["containers"]] == ["istio-proxy", "reviews"]
    assert "wait" in proxy_of(made)["lifecycle"]["postStart"]["exec"]["command"]


def test_native_sidecar() -> None:
    """A native sidecar is an init container that stays, before the user's own init containers."""
    pod = make_pod(
        annotations={"sidecar.istio.io/nativeSidecar": "true"},
        initContainers=[{"name": "migrate", "image": "m"}],
    )
    made = injected(pod)
    assert [c["name"] for c in made["spec"]["containers"]] == ["reviews"]
    names = [c["name"] for c in made["spec"]["initContainers"]]
    assert names == ["istio-init", "istio-proxy", "migrate"]
    assert proxy_of(made)["restartPolicy"] == "Always"
    assert run(made).reason == "the pod has a proxy already"


def test_a_users_proxy_container_is_an_overlay() -> None:
    """What the pod says about ``istio-proxy`` is laid on the template; image ``auto`` is the template's."""
    pod = make_pod()
    pod["spec"]["containers"].insert(
        0,
        {
            "name": "istio-proxy",
            "image": "auto",
            "env": [{"name": "POD_NAME", "value": "fixed"}, {"name": "EXTRA", "value": "1"}],
            "resources": {"limits": {"cpu": "1"}},
        },
    )
    proxy = proxy_of(injected(pod))
    assert proxy["image"] == "docker.io/meltemi/proxy:0.1.0"
    env = {item["name"]: item for item in proxy["env"]}
    assert env["POD_NAME"] == {"name": "POD_NAME", "value": "fixed"}
    assert env["EXTRA"]["value"] == "1" and "PROXY_CONFIG" in env
    assert proxy["resources"]["limits"] == {"cpu": "1", "memory": "1024Mi"}


def test_a_gateway_pod_becomes_a_router() -> None:
    """Template ``gateway``: no capture, type router, the container in place, nothing else in the pod."""
    pod = {
        "metadata": {
            "labels": {"app": "istio-ingressgateway", "sidecar.istio.io/inject": "true"},
            "annotations": {"inject.istio.io/templates": "gateway"},
        },
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
    }
    request = {"object": pod, "namespace": "istio-system"}
    result = inject(request, {}, InjectionConfig(), MESH)
    assert result.patch
    made = jsonpatch.apply_patch(pod, result.patch)
    assert "initContainers" not in made["spec"]
    (proxy,) = made["spec"]["containers"]
    assert proxy["args"][:2] == ["proxy", "router"]
    assert "kubectl.kubernetes.io/default-container" not in made["metadata"]["annotations"]
    # Its ports speak what its Gateways say: sidecars must not take it for one that speaks mutual TLS.
    assert "security.istio.io/tlsMode" not in made["metadata"]["labels"]


def test_a_users_template_is_an_overlay_with_variables() -> None:
    """Templates of the ConfigMap are pod overlays; ``${VARIABLE}`` places are filled."""
    template = {
        "metadata": {"annotations": {"team": "${NAMESPACE}"}},
        "spec": {
            "containers": [
                {"name": "istio-proxy", "env": [{"name": "W", "value": "${WORKLOAD}"}]},
                {"name": "logger", "image": "logger:1"},
            ]
        },
    }
    config, problems = parse_injection_config(
        yaml.safe_dump({"templates": {"custom": yaml.safe_dump(template)}}), "{}"
    )
    assert not problems
    made = injected(make_pod(annotations={"inject.istio.io/templates": "sidecar,custom"}), config)
    assert made["metadata"]["annotations"]["team"] == "bookinfo"
    assert env_of(made)["W"] == "reviews-v1"
    assert [c["name"] for c in made["spec"]["containers"]] == ["reviews", "istio-proxy", "logger"]


def test_the_config_map_is_read_in_the_installers_names() -> None:
    """hub, tag, proxy settings, webhook settings and revision; wrong types are named and ignored."""
    values = {
        "global": {
            "hub": "example.com/mesh",
            "tag": 2,
            "proxy": {
                "image": "proxyv2",
                "logLevel": "info",
                "resources": {"requests": {"cpu": "5m"}},
            },
            "multiCluster": {"clusterName": "east"},
            "network": 7.5,
            "imagePullPolicy": ["Always"],
        },
        "sidecarInjectorWebhook": {"rewriteAppHTTPProbe": False},
        "revision": "canary",
    }
    config, problems = parse_injection_config("policy: enabled\n", json.dumps(values))
    assert (config.hub, config.tag, config.image) == ("example.com/mesh", "2", "proxyv2")
    assert (config.cluster_id, config.rewrite_probes) == ("east", False)
    assert config.revision_name == "canary"
    assert problems == ["values.global.imagePullPolicy: ['Always'] is not of type str"]
    broken, problems = parse_injection_config("a: [", "{")
    assert broken == InjectionConfig() and len(problems) == 2


def test_the_webhooks_path_names_cluster_and_network() -> None:
    """``/inject/cluster/west/net/n1`` reaches the proxy's metadata."""
    made = injected(make_pod(), url_values={"cluster": "west", "net": "n1"})
    env = env_of(made)
    assert (env["ISTIO_META_CLUSTER_ID"], env["ISTIO_META_NETWORK"]) == ("west", "n1")
    assert made["metadata"]["labels"]["topology.istio.io/network"] == "n1"


def test_workloads_are_injected_offline() -> None:
    """A Deployment's template gets the proxy and no owner; a Service comes back as it is."""
    pod = make_pod()
    template = {"metadata": {"labels": {"app": "reviews"}}, "spec": pod["spec"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "reviews-v1", "namespace": "bookinfo"},
        "spec": {"template": template},
    }
    made, result = inject_resource(deployment, ENABLED, InjectionConfig(), MESH)
    inner = made["spec"]["template"]
    assert result.patch and "ownerReferences" not in inner["metadata"]
    assert env_of(inner)["ISTIO_META_WORKLOAD_NAME"] == "reviews-v1"
    service = {"kind": "Service", "metadata": {"name": "x"}}
    assert inject_resource(service, ENABLED, InjectionConfig(), MESH)[0] == service


@pytest.mark.parametrize(
    "request_", [{}, {"object": None}, {"object": {}}, {"object": {"spec": None}}]
)
def test_odd_requests_do_not_raise(request_: dict[str, Any]) -> None:
    """Whatever an API server sends, there is an answer."""
    assert isinstance(inject(request_, ENABLED, InjectionConfig(), MESH), InjectionResult)
