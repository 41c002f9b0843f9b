"""Who sees what: exportTo, the mesh's defaults, discoverySelectors, and which of several rules holds."""

from __future__ import annotations

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"
URL = "http://reviews.default:9080/"
FULL = "reviews.default.svc.cluster.local"


def service(annotation: str) -> str:
    """The Service ``details`` with an exportTo."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: details, annotations: {{networking.istio.io/exportTo: "{annotation}"}}}}
spec: {{selector: {{app: details}}, ports: [{{name: http, port: 9080}}]}}
"""


def answers(client: Client, url: str = "http://details.default:9080/") -> bool:
    """True when a service answers, False when the proxy knows of none."""
    try:
        status = client.get(url).status
    except NoAnswer:
        return False
    assert status in (200, 502)
    return status == 200


# --- Services -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("export", "here", "there"),
    [("*", True, True), (".", True, False), ("elsewhere", False, True), ("~", False, False),
     ("default, elsewhere", True, True)],
)  # fmt: skip
def test_a_service_is_exported_by_annotation(
    shop: Mesh, export: str, here: bool, there: bool
) -> None:
    shop.apply(service(export), mesh_config=CLOSED)
    assert answers(shop.client("caller")) is here
    assert answers(shop.client("other")) is there


@pytest.mark.covers("MeshConfig.defaultServiceExportTo")
def test_services_are_exported_as_the_mesh_says(shop: Mesh) -> None:
    shop.apply(mesh_config=f"{CLOSED}\ndefaultServiceExportTo: ['.']")
    assert answers(shop.client("caller"))
    assert not answers(shop.client("other"))
    shop.apply(service("*"), mesh_config=f"{CLOSED}\ndefaultServiceExportTo: ['.']")
    assert answers(shop.client("other"))


@pytest.mark.covers(
    "MeshConfig.discoverySelectors.matchLabels",
    "MeshConfig.discoverySelectors.matchExpressions.key",
    "MeshConfig.discoverySelectors.matchExpressions.operator",
    "MeshConfig.discoverySelectors.matchExpressions.values",
)
@pytest.mark.parametrize(
    ("selectors", "seen"),
    [
        ("[{matchLabels: {mesh: 'on'}}]", False),
        ("[{matchLabels: {mesh: 'on'}}, {matchLabels: {env: dev}}]", True),
        ("[{matchExpressions: [{key: env, operator: In, values: [dev, qa]}]}, {matchLabels: {mesh: 'on'}}]", True),
        ("[{matchExpressions: [{key: env, operator: NotIn, values: [dev]}]}]", False),
        ("[{matchExpressions: [{key: env, operator: Exists}]}, {matchLabels: {mesh: 'on'}}]", True),
        ("[{matchExpressions: [{key: env, operator: DoesNotExist}]}]", False),
        ("[{matchLabels: {kubernetes.io/metadata.name: elsewhere, env: dev}}, {matchLabels: {mesh: 'on'}}]", True),
    ],
)  # fmt: skip
def test_namespaces_that_are_not_selected_do_not_exist(
    shop: Mesh, caller: Client, selectors: str, seen: bool
) -> None:
    """Their services are unknown, and their rules hold for nobody."""
    shop.apply(
        """
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {mesh: "on"}}
---
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere, labels: {env: dev}}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: elsewhere}
spec: {selector: {app: other}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: foreign, namespace: elsewhere}
spec: {hosts: [details.default.svc.cluster.local], http: [{directResponse: {status: 418}}]}
""",
        mesh_config=f"{CLOSED}\ndiscoverySelectors: {selectors}",
    )
    assert answers(caller, "http://other.elsewhere:9080/") is seen
    assert caller.get("http://details:9080/").status == (418 if seen else 200)


# --- VirtualServices ----------------------------------------------------------------------------------


def rule(name: str, hosts: str, status: int, namespace: str = "default", more: str = "") -> str:
    """A VirtualService that answers by itself."""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: {hosts}
  {more}
  http: [{{directResponse: {{status: {status}}}}}]
"""


@pytest.mark.covers("VirtualService.exportTo")
@pytest.mark.parametrize(
    ("export", "here", "there"),
    [
        ("'*'", 418, 418),
        ("'.'", 418, 200),
        ("elsewhere", 200, 418),
        ("default, elsewhere", 418, 418),
    ],
)
def test_a_rule_is_exported(shop: Mesh, export: str, here: int, there: int) -> None:
    shop.apply(rule("r", f"[{FULL}]", 418, more=f"exportTo: [{export}]"))
    assert shop.client("caller").get(URL).status == here
    assert shop.client("other").get(URL).status == there


@pytest.mark.covers("MeshConfig.defaultVirtualServiceExportTo")
def test_rules_are_exported_as_the_mesh_says(shop: Mesh) -> None:
    shop.apply(rule("r", f"[{FULL}]", 418), mesh_config="defaultVirtualServiceExportTo: ['.']")
    assert shop.client("caller").get(URL).status == 418
    assert shop.client("other").get(URL).status == 200


@pytest.mark.parametrize(
    ("host", "namespace", "here", "there"),
    [
        ("reviews", "default", 418, 418),
        ("reviews", "elsewhere", 200, 200),
        (FULL, "elsewhere", 418, 418),
        ("'*.default.svc.cluster.local'", "default", 418, 418),
        ("'*.local'", "elsewhere", 418, 418),
        ("reviews.default", "default", 200, 200),
    ],
)
def test_short_names_mean_the_rules_own_namespace(
    shop: Mesh, host: str, namespace: str, here: int, there: int
) -> None:
    """A name without a dot is a Service there; one with a dot is a full name."""
    shop.apply(rule("r", f"[{host}]", 418, namespace))
    assert shop.client("caller").get(URL, host=f"{FULL}:9080").status == here
    assert shop.client("other").get(URL, host=f"{FULL}:9080").status == there


def test_the_longest_host_wins_then_the_oldest(shop: Mesh, caller: Client) -> None:
    """Age does not help a shorter name."""
    shop.apply(rule("a", "['*.local']", 411))
    assert caller.get(URL).status == 411
    shop.apply(rule("b", "['*.cluster.local']", 412))
    assert caller.get(URL).status == 412
    shop.apply(rule("c", "[reviews]", 413))
    assert caller.get(URL).status == 413
    shop.apply(rule("d", "[reviews]", 414))
    assert caller.get(URL).status == 413
    assert caller.get("http://details:9080/").status == 412


def test_rules_that_say_nothing_for_a_client_leave_it_to_the_next(shop: Mesh) -> None:
    """Two teams share a host: each rule concerns its own clients; for others the service's default holds."""
    for name, team, status in (("a", "blue", 411), ("b", "green", 412)):
        shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [{FULL}]
  http: [{{match: [{{sourceLabels: {{team: {team}}}}}], directResponse: {{status: {status}}}}}]
""")
    assert shop.client("caller").get(URL).status == 411
    assert shop.client("other").get(URL).status == 412
    assert shop.client("details-v1").get(URL).status == 200


def test_a_rule_for_another_port_leaves_this_one_alone(shop: Mesh, caller: Client) -> None:
    shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: r}}
spec: {{hosts: [{FULL}], http: [{{match: [{{port: 9081}}], directResponse: {{status: 418}}}}]}}
""")
    assert caller.get("http://reviews:9081/").status == 418
    assert caller.get("http://reviews:9080/").status == 200


def test_http_and_tcp_rules_of_one_host_may_be_two_objects(shop: Mesh, caller: Client) -> None:
    shop.apply(
        rule("a", "[reviews]", 418)
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec: {hosts: [reviews], tcp: [{route: [{destination: {host: reviews, subset: v2}}]}]}
"""
    )
    assert caller.get(URL).status == 418
    for _ in range(3):
        with caller.tcp("reviews:9000") as connection:
            assert connection.ask("hi")["workload"] == "reviews-v2"


def test_a_host_that_no_service_has(shop: Mesh, caller: Client) -> None:
    """A rule may give a name to what has none; on port 80 it needs no service."""
    shop.apply("""
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: details}, ports: [{name: http, port: 80, targetPort: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r}
spec: {hosts: [books.example], http: [{route: [{destination: {host: web}}]}]}
""")
    assert caller.get("http://books.example/").workload == "details-v1"


# --- DestinationRules ---------------------------------------------------------------------------------


def subset(name: str, namespace: str, version: str, more: str = "", host: str = FULL) -> str:
    """A DestinationRule whose subset ``chosen`` is a version of reviews."""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  host: "{host}"
  {more}
  subsets: [{{name: chosen, labels: {{version: {version}}}}}]
"""


@pytest.fixture
def chosen(shop: Mesh) -> Mesh:
    """Requests to reviews go to the subset ``chosen``, whoever defines it."""
    shop.delete("DestinationRule", "reviews")
    return shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec: {{hosts: [{FULL}], http: [{{route: [{{destination: {{host: {FULL}, subset: chosen}}}}]}}]}}
""")


@pytest.mark.covers("DestinationRule.host", "MeshConfig.rootNamespace")
def test_rules_are_looked_up_at_the_client_then_the_service_then_the_root(chosen: Mesh) -> None:
    chosen.apply(subset("root", "mesh-root", "v1"), mesh_config="rootNamespace: mesh-root")
    assert chosen.client("other").get(URL).workload == "reviews-v1"
    chosen.apply(subset("service", "default", "v2"))
    assert chosen.client("other").get(URL).workload == "reviews-v2"
    assert chosen.client("caller").get(URL).workload == "reviews-v2"
    chosen.apply(subset("client", "elsewhere", "v3"))
    assert chosen.client("other").get(URL).workload == "reviews-v3"
    assert chosen.client("caller").get(URL).workload == "reviews-v2"


@pytest.mark.covers("DestinationRule.exportTo")
def test_a_rule_is_for_the_namespaces_it_is_exported_to(chosen: Mesh) -> None:
    chosen.apply(subset("a", "default", "v1", "exportTo: ['.']"))
    assert chosen.client("caller").get(URL).workload == "reviews-v1"
    assert chosen.client("other").get(URL).status == 503
    chosen.apply(subset("a", "default", "v1", "exportTo: [elsewhere]"))
    assert chosen.client("other").get(URL).workload == "reviews-v1"
    assert chosen.client("caller").get(URL).status == 503, "exportTo leaves its own namespace out"
    chosen.apply(subset("a", "default", "v1", "exportTo: [elsewhere, default]"))
    assert chosen.client("caller").get(URL).workload == "reviews-v1"


@pytest.mark.covers("MeshConfig.defaultDestinationRuleExportTo")
def test_destination_rules_are_exported_as_the_mesh_says(chosen: Mesh) -> None:
    chosen.apply(subset("a", "default", "v1"), mesh_config="defaultDestinationRuleExportTo: ['.']")
    assert chosen.client("caller").get(URL).workload == "reviews-v1"
    assert chosen.client("other").get(URL).status == 503


def test_the_most_specific_host_is_the_one(chosen: Mesh) -> None:
    for name, host, version in (
        ("a", "*.local", "v1"),
        ("b", "*.default.svc.cluster.local", "v2"),
        ("c", "reviews", "v3"),
    ):
        chosen.apply(subset(name, "default", version, host=host))
        assert chosen.client("caller").get(URL).workload == f"reviews-{version}"


@pytest.mark.covers("DestinationRule.workloadSelector.matchLabels")
def test_a_rule_that_selects_the_client_holds_alone(chosen: Mesh) -> None:
    chosen.apply(
        subset("a", "default", "v1")
        + subset("b", "default", "v2", "workloadSelector: {matchLabels: {team: blue}}")
    )
    assert chosen.client("caller").get(URL).workload == "reviews-v2"
    assert chosen.client("details-v1").get(URL).workload == "reviews-v1"
    chosen.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b}
spec:
  host: reviews
  workloadSelector: {matchLabels: {team: blue}}
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
""")
    assert chosen.client("caller").get(URL).status == 503, (
        "no subset of the general rule is its own"
    )


def test_subsets_of_equal_hosts_add_up(shop: Mesh, caller: Client) -> None:
    shop.apply("""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: second}
spec: {host: reviews, subsets: [{name: latest, labels: {version: v3}}, {name: v1, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - {match: [{uri: {prefix: /latest}}], route: [{destination: {host: reviews, subset: latest}}]}
  - route: [{destination: {host: reviews, subset: v1}}]
""")
    assert caller.get(URL + "latest").workload == "reviews-v3"
    assert caller.get(URL).workload == "reviews-v1", "the older rule's subset keeps its name"
