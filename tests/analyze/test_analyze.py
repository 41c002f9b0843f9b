"""What is wrong across objects: each case is YAML, and the codes and fields that it leads to."""

from __future__ import annotations

import base64

import pytest

from meltemi.analyze.analysis import analyze
from meltemi.analyze.messages import MESSAGES
from meltemi.config.decode import decode, parse_yaml
from meltemi.model.origin import Finding

WORLD = """
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: b}
spec:
  clusterIP: 10.0.0.1
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  clusterIP: 10.0.0.2
  selector: {istio: ingressgateway}
  ports: [{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}]
---
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: istio-system, labels: {istio: ingressgateway}}
status: {podIP: 10.1.0.1, phase: Running}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: b}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: b}
spec:
  selector: {istio: ingressgateway}
  servers: [{hosts: [shop.example.com], port: {number: 80, name: http, protocol: HTTP}}]
"""


def vs(spec: str, name: str = "vs") -> str:
    return (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        f"metadata: {{name: {name}, namespace: b}}\nspec: {spec}\n"
    )


def gateway(tls: str = "", **edit: str) -> str:
    selector = edit.get("selector", "{istio: ingressgateway}")
    port = edit.get("port", "443")
    return (
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g2, namespace: b}\n"
        f"spec: {{selector: {selector}, servers: [{{hosts: [other.example.com], "
        f"port: {{number: {port}, name: https, protocol: HTTPS}}, tls: {{mode: SIMPLE, {tls}}}}}]}}\n"
    )


def run(*texts: str, whole: bool = True) -> list[Finding]:
    configs = []
    for text in (WORLD, *texts):
        objects, findings = parse_yaml(text, "t.yaml")
        assert findings == []
        for raw in objects:
            config, wrong = decode(raw)
            assert config is not None, wrong
            configs.append(config)
    return analyze(configs, whole=whole)


ROUTE = "http: [{route: [{destination: {host: %s}}]}]"


@pytest.mark.parametrize(
    ("text", "code", "path", "remedy"),
    [
        (vs("{hosts: [reviews], " + ROUTE % "reveiws" + "}"), "IST0101", "destination.host", "reviews.b.svc"),
        (vs("{hosts: [reviews], " + ROUTE % "nowhere" + "}"), "IST0101", "destination.host", "nowhere.b.svc"),
        (vs("{hosts: [reviews], " + ROUTE % "reviews, subset: v11" + "}"), "IST0101", "subset", "v1"),
        (vs("{hosts: [reviews], " + ROUTE % "reviews, port: {number: 80}" + "}"), "IST0101", "port.number", "9080"),
        (vs("{hosts: [shop.example.com], gateways: [gww], " + ROUTE % "reviews" + "}"), "IST0101", "gateways[0]", "b/gw"),
        (vs("{hosts: [a.example.com], gateways: [gw], " + ROUTE % "reviews" + "}"), "IST0132", "gateways[0]", "add"),
        (
            vs("{hosts: [shop.example.com], gateways: [gw], " + ROUTE % "istio-ingressgateway.istio-system.svc.cluster.local" + "}"),
            "IST0112", "destination", "port",
        ),
        (
            vs("{hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}, {route: [{destination: {host: reviews}}]}]}"),
            "IST0130", "spec.http[1]", "remove",
        ),
        (
            vs("{hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews}}]}, "
               "{match: [{uri: {prefix: /a}}, {uri: {exact: /b}}], route: [{destination: {host: reviews}}]}]}"),
            "IST0131", "spec.http[1].match[0]", "remove",
        ),
        (vs("{hosts: [reviews], http: [{delegate: {name: leaf}}]}"), "IST0101", "spec.http[0].delegate", "create it"),
        (
            vs("{hosts: [reviews], http: [{delegate: {name: leaf}}]}") + "---\n" + vs("{hosts: [web], " + ROUTE % "reviews" + "}", "leaf"),
            "IST0101", "spec.http[0].delegate", "take the hosts out",
        ),
        (
            vs("{hosts: [reviews], http: [{delegate: {name: leaf}}]}") + "---\n"
            + vs("{exportTo: [c], " + ROUTE % "reviews" + "}", "leaf"),
            "IST0101", "spec.http[0].delegate", "exportTo",
        ),
        (
            vs("{hosts: [reviews], http: [{match: [{uri: {prefix: /a}}], delegate: {name: leaf}}]}") + "---\n"
            + vs("{http: [{match: [{uri: {prefix: /b}}], route: [{destination: {host: reviews}}]}]}", "leaf"),
            "MLT0023", "spec.http[0].delegate", "match",
        ),
        (gateway("credentialName: missing"), "IST0101", "credentialName", "istio-system"),
        (gateway("credentialName: x", selector="{istio: none}"), "IST0101", "spec.selector", "selector"),
        (gateway("credentialName: x", port="7777"), "IST0162", "port.number", "Service"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {ports: [{name: web, port: 1}]}",
            "IST0118", "spec.ports[0]", "http-web",
        ),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: plain}", "IST0102", "metadata.labels", "istio-injection"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b, annotations: {networking.istio.io/exportTo2: x}}",
            "IST0108", "exportTo2", "exportTo",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: b}\n"
            "spec: {selector: {matchLabels: {app: nobody}}}",
            "IST0127", "spec.selector", "labels",
        ),
        (
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t, namespace: b}\n"
            "spec: {tracing: [{providers: [{name: zipkn}]}]}",
            "IST0157", "spec.tracing[0].providers", "meshConfig",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b, annotations: {sidecar.istio.io/proxyCPU: 100m}}",
            "IST0107", "proxyCPU", "move",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b, annotations: {sidecar.istio.io/inject: 'true'}}",
            "IST0135", "inject", "label",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b, annotations: {traffic.sidecar.istio.io/includeInboundPorts: 'http'}}",
            "IST0125", "includeInboundPorts", "correct",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b, annotations: {proxy.istio.io/config: 'concurrency: many'}}",
            "IST0125", "proxy.istio.io/config", "correct",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nspec: {containers: [{name: app, securityContext: {runAsUser: 1337}}]}",
            "IST0144", "containers[0].securityContext.runAsUser", "user",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nspec: {containers: [{name: istio-proxy, image: auto}]}",
            "IST0147", "containers[0].image", "label",
        ),
        (
            vs("{hosts: [shop.example.com], gateways: [gw], http: [{match: [{headers: {'@request.auth.claims.sub': {exact: a}}}], "
               "route: [{destination: {host: reviews}}]}]}"),
            "IST0149", "match[0].headers", "RequestAuthentication",
        ),
        (
            "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f, namespace: b}\nspec: {configPatches: "
            "[{applyTo: CLUSTER, match: {proxy: {proxyVersion: '1.*'}}, patch: {operation: REMOVE}}]}",
            "IST0155", "patch.operation", "priority",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: r, namespace: b, labels: {app: reviews, version: v2}}\nstatus: {podIP: 10.1.0.2}",
            "IST0173", "spec.subsets[0].labels", "labels",
        ),
    ],
)  # fmt: skip
def test_findings(text: str, code: str, path: str, remedy: str) -> None:
    found = [f for f in run(text) if f.code == code and path in f.origin.path]
    assert found, run(text)
    assert remedy in found[0].remedy
    assert found[0].origin.source == "t.yaml"
    assert found[0].origin.line > 0
    assert found[0].level is MESSAGES[code].level


def test_a_sound_world_has_no_findings() -> None:
    sound = vs("{hosts: [shop.example.com], gateways: [gw], " + ROUTE % "reviews, subset: v1" + "}")
    assert run(sound) == []


def test_files_alone_do_not_complain_about_what_only_a_cluster_knows() -> None:
    assert run(gateway("credentialName: missing", selector="{istio: none}"), whole=False) == []


def test_conflicting_hosts_are_told_to_both() -> None:
    one = vs("{hosts: [reviews], " + ROUTE % "reviews" + "}", "one")
    two = vs("{hosts: [reviews.b.svc.cluster.local], " + ROUTE % "reviews" + "}", "two")
    found = [f for f in run(one, two) if f.code == "IST0109"]
    assert sorted(f.origin.name for f in found) == ["one", "two"]


def test_suppression() -> None:
    text = vs("{hosts: [reviews], " + ROUTE % "nowhere" + "}").replace(
        "namespace: b}", 'namespace: b, annotations: {galley.istio.io/analyze-suppress: "IST0101"}}'
    )
    assert run(text) == []


def test_certificates() -> None:
    def secret(**data: str) -> str:
        body = ", ".join(f"{k}: {base64.b64encode(v.encode()).decode()}" for k, v in data.items())
        names = body.replace("tls_crt", "tls.crt").replace("tls_key", "tls.key")
        return (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: cert, namespace: istio-system}\n"
            f"data: {{{names}}}\n"
        )

    text = gateway("credentialName: cert")
    good = secret(tls_crt="-----BEGIN CERTIFICATE-----", tls_key="-----BEGIN PRIVATE KEY-----")
    assert run(text, good) == []
    assert [f.code for f in run(text, secret(tls_crt="x", tls_key="y"))] == ["IST0161"]
    assert [f.code for f in run(text, secret())] == ["IST0161"]


def test_every_used_code_is_known() -> None:
    assert all(code == message.code for code, message in MESSAGES.items())
