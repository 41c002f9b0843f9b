"""Rules of every kind: one wrong value each, and the field that is named. Right values stay silent."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from meltemi.config.decode import load
from meltemi.config.kinds import KINDS
from meltemi.model.origin import Finding, Level


def check(kind: str, spec: str) -> list[Finding]:
    body: dict[str, Any] = {
        "apiVersion": KINDS[kind].api_version,
        "kind": kind,
        "metadata": {"name": "a", "namespace": "b"},
        "spec": yaml.safe_load(spec),
    }
    return load(body)[1]


RIGHT = [
    ("Gateway", "{selector: {a: b}, servers: [{hosts: ['*'], port: {number: 80, name: h, protocol: HTTP}, tls: {httpsRedirect: true}}]}"),
    ("Gateway", "{servers: [{hosts: ['./a.com', 'ns/*.b.com'], port: {number: 443, name: s, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: c}}]}"),
    ("Gateway", "{servers: [{hosts: ['*.local'], port: {number: 15443, name: t, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}}]}"),
    ("ServiceEntry", "{hosts: ['*.a.com'], ports: [{number: 443, name: t, protocol: TLS}], location: MESH_EXTERNAL}"),
    ("ServiceEntry", "{hosts: [a.com], ports: [{number: 80, name: h, protocol: http}], resolution: STATIC, endpoints: [{address: 1.2.3.4, ports: {h: 8080}}]}"),
    ("WorkloadEntry", "{address: vm.a.com, labels: {app: x}, serviceAccount: sa}"),
    ("Sidecar", "{egress: [{port: {number: 80, protocol: HTTP, name: h}, hosts: ['b/*']}, {hosts: ['./*', 'istio-system/*', '~/*']}]}"),
    ("PeerAuthentication", "{selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/b']}}], to: [{operation: {paths: ['/a/{*}/b', '/x*'], methods: [GET]}}], when: [{key: 'request.headers[x]', values: [y]}]}]}"),
    ("AuthorizationPolicy", "{action: DENY, rules: [{}]}"),
    ("AuthorizationPolicy", "{}"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwks: '{\"keys\":[{}]}', fromHeaders: [{name: x, prefix: 'y '}]}]}"),
    ("Telemetry", "{accessLogging: [{providers: [{name: envoy}], filter: {expression: 'response.code >= 400'}}]}"),
    ("EnvoyFilter", "{configPatches: [{applyTo: HTTP_FILTER, match: {context: GATEWAY, listener: {filterChain: {filter: {name: x}}}}, patch: {operation: INSERT_BEFORE, value: {name: y}}}]}"),
    ("WasmPlugin", "{url: 'oci://a/b:1', phase: AUTHN}"),
    ("TrafficExtension", "{lua: {inlineCode: 'x'}}"),
    ("ProxyConfig", "{concurrency: 2, image: {imageType: distroless}}"),
    ("DestinationRule", "{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}, outlierDetection: {consecutive5xxErrors: 1, interval: 1s, maxEjectionPercent: 100}}}"),
    ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: u, ttl: 0s}}}, portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]}}"),
    ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r/z/*, to: {r/z/*: 80, r/y/*: 20}}]}}}}"),
    ("VirtualService", "{hosts: [a.com], tls: [{match: [{sniHosts: [a.com]}], route: [{destination: {host: b}}]}]}"),
    ("VirtualService", "{http: [{route: [{destination: {host: b}}]}]}"),
    ("IstioOperator", "{profile: demo, components: {ingressGateways: [{name: g, enabled: true, k8s: {replicaCount: 2}}]}, values: {global: {x: 1}}}"),
]  # fmt: skip

WRONG = [
    ("Gateway", "{servers: []}", "spec.servers"),
    ("Gateway", "{servers: [{hosts: ['*'], port: {number: 443, name: s, protocol: HTTPS}}]}", "servers[0].tls"),
    ("Gateway", "{servers: [{hosts: ['*'], port: {number: 443, name: s, protocol: HTTPS}, tls: {mode: SIMPLE}}]}", "tls.serverCertificate"),
    ("Gateway", "{servers: [{hosts: ['*'], port: {number: 80, name: h, protocol: HTTP}, tls: {mode: SIMPLE, credentialName: c}}]}", "servers[0].tls"),
    ("Gateway", "{servers: [{hosts: ['a b'], port: {number: 80, name: h, protocol: HTTP}}]}", "hosts[0]"),
    ("Gateway", "{servers: [{hosts: ['*'], port: {number: 80, name: h, protocol: HTPT}}]}", "port.protocol"),
    ("Gateway", "{servers: [{hosts: ['*'], port: {number: 80, name: h, protocol: HTTP}}, {hosts: ['*'], port: {number: 81, name: h, protocol: HTTP}}]}", "servers[1].port.name"),
    ("ServiceEntry", "{hosts: []}", "spec.hosts"),
    ("ServiceEntry", "{hosts: ['*']}", "spec.hosts[0]"),
    ("ServiceEntry", "{hosts: [a.com], endpoints: [{address: 1.1.1.1}]}", "spec.endpoints"),
    ("ServiceEntry", "{hosts: [a.com], resolution: STATIC, endpoints: [{address: b.com}]}", "endpoints[0].address"),
    ("ServiceEntry", "{hosts: ['*.a.com'], resolution: DNS}", "spec.hosts"),
    ("ServiceEntry", "{hosts: [a.com], ports: [{number: 1, name: a}, {number: 1, name: b}]}", "ports[1].number"),
    ("ServiceEntry", "{hosts: [a.com], resolution: STATIC, endpoints: [{address: 1.1.1.1, ports: {x: 1}}]}", "ports.x"),
    ("ServiceEntry", "{hosts: [a.com], resolution: DNS, endpoints: [{address: b}], workloadSelector: {labels: {a: b}}}", "workloadSelector"),
    ("WorkloadEntry", "{}", "spec.address"),
    ("WorkloadEntry", "{address: 'unix:///x', ports: {a: 1}}", "spec.ports"),
    ("WorkloadGroup", "{template: {ports: {http: 0}}}", "template.ports.http"),
    ("WorkloadGroup", "{template: {}, probe: {}}", "spec.probe"),
    ("Sidecar", "{egress: [{hosts: [a.com]}]}", "hosts[0]"),
    ("Sidecar", "{egress: [{hosts: ['*/*']}, {hosts: ['./*']}]}", "egress[1]"),
    ("Sidecar", "{ingress: [{port: {number: 80, name: h, protocol: HTTP}, defaultEndpoint: '10.0.0.1:80'}]}", "defaultEndpoint"),
    ("PeerAuthentication", "{portLevelMtls: {8080: {mode: STRICT}}}", "portLevelMtls"),
    ("PeerAuthentication", "{selector: {matchLabels: {a: 'b*'}}}", "matchLabels.a"),
    ("AuthorizationPolicy", "{action: CUSTOM, rules: [{}]}", "spec.provider"),
    ("AuthorizationPolicy", "{action: DENY}", "spec.rules"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {}}]}]}", "from[0].source"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {ipBlocks: ['10.0.0.300']}}]}]}", "ipBlocks[0]"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {ports: ['http']}}]}]}", "ports[0]"),
    ("AuthorizationPolicy", "{rules: [{to: [{operation: {paths: ['/a{*}']}}]}]}", "paths[0]"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: sourc.ip, values: [1.1.1.1]}]}]}", "when[0].key"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwksUri: x}]}", "jwksUri"),
    ("RequestAuthentication", "{jwtRules: [{issuer: a, jwks: x}]}", "jwks"),
    ("Telemetry", "{tracing: [{randomSamplingPercentage: 101}]}", "randomSamplingPercentage"),
    ("Telemetry", "{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]}", "tagOverrides.a.value"),
    ("EnvoyFilter", "{configPatches: [{applyTo: CLUSTER, match: {listener: {}}, patch: {operation: REMOVE}}]}", "match.listener"),
    ("EnvoyFilter", "{configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE}}]}", "patch.value"),
    ("WasmPlugin", "{url: 'ftp://x'}", "spec.url"),
    ("WasmPlugin", "{url: 'oci://x', sha256: zz}", "sha256"),
    ("TrafficExtension", "{}", "spec"),
    ("DestinationRule", "{host: a, subsets: [{name: x}, {name: x}]}", "subsets[1].name"),
    ("DestinationRule", "{host: a, trafficPolicy: {}}", "trafficPolicy"),
    ("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: MUTUAL}}}", "clientCertificate"),
    ("DestinationRule", "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, credentialName: x}}}", "credentialName"),
    ("DestinationRule", "{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}", "maxConnections"),
    ("DestinationRule", "{host: a, trafficPolicy: {outlierDetection: {interval: 0s}}}", "interval"),
    ("DestinationRule", "{host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}", "maxEjectionPercent"),
    ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}}", "consistentHash"),
    ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r, to: {x: 50}}]}}}}", "distribute[0].to"),
    ("DestinationRule", "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}}", "tableSize"),
    ("VirtualService", "{hosts: [a.com], tls: [{match: [{sniHosts: [b.com]}], route: [{destination: {host: b}}]}]}", "sniHosts[0]"),
    ("VirtualService", "{hosts: [a], http: [{}]}", "spec.http[0]"),
    ("VirtualService", "{hosts: [a], http: [{redirect: {uri: /x}, rewrite: {uri: /y}}]}", "rewrite"),
    ("VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}", "http[0].route"),
    ("VirtualService", "{hosts: [a], gateways: ['a/b/c'], http: [{route: [{destination: {host: a}}]}]}", "gateways[0]"),
    ("VirtualService", "{hosts: [a], exportTo: ['*', '.'], http: [{route: [{destination: {host: a}}]}]}", "exportTo"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spec"), RIGHT)
def test_right(kind: str, spec: str) -> None:
    assert [f for f in check(kind, spec) if f.level is not Level.INFO] == []


@pytest.mark.parametrize(("kind", "spec", "path"), WRONG)
def test_wrong(kind: str, spec: str, path: str) -> None:
    errors = [f for f in check(kind, spec) if f.level is Level.ERROR]
    assert errors, "accepted"
    assert any(f.origin.path.endswith(path) for f in errors), [str(f) for f in errors]
    assert all(f.text for f in errors)


def test_deprecations_warn() -> None:
    findings = check(
        "DestinationRule", "{host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 1}}}"
    )
    assert [(f.code, f.level) for f in findings] == [("IST0002", Level.WARNING)]
