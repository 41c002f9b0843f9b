"""Sidecar: what workloads may reach, on which ports and addresses, and what they accept."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from behaviour_rules import eventually
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"


def sidecar(spec: str, name: str = "default", namespace: str = "default") -> str:
    """A Sidecar; ``spec`` is in flow style."""
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )


def egress(*hosts: str) -> str:
    """One listener for these hosts, on all ports."""
    return f"egress: [{{hosts: {list(hosts)}}}]"


def reaches(client: Client, host: str, port: int = 9080) -> bool:
    """Whether a service answers; without one on the port at all the connection is refused."""
    try:
        return client.get(f"http://{host}:{port}/").status == 200
    except NoAnswer:
        return False


ELSEWHERE = """
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: elsewhere}
spec: {selector: {app: other}, ports: [{name: http, port: 9080}]}
"""


@pytest.fixture
def town(shop: Mesh) -> Mesh:
    """Services in two namespaces; nothing else is reachable."""
    return shop.apply(ELSEWHERE, mesh_config=CLOSED)


# --- which hosts --------------------------------------------------------------------------------------


@pytest.mark.covers("Sidecar.egress.hosts")
@pytest.mark.parametrize(
    ("hosts", "reviews", "details", "other"),
    [
        (("*/*",), True, True, True),
        (("./*",), True, True, False),
        (("default/*",), True, True, False),
        (("elsewhere/*",), False, False, True),
        (("./reviews.default.svc.cluster.local",), True, False, False),
        (("*/details.default.svc.cluster.local",), False, True, False),
        (("elsewhere/details.default.svc.cluster.local",), False, False, False),
        (("*/*.elsewhere.svc.cluster.local",), False, False, True),
        (("./details.default.svc.cluster.local", "elsewhere/*"), False, True, True),
        (("~/*",), False, False, False),
    ],
)
def test_hosts_are_namespaces_and_names(
    town: Mesh, caller: Client, hosts: tuple[str, ...], reviews: bool, details: bool, other: bool
) -> None:
    town.apply(sidecar(egress(*hosts)))
    found = [reaches(caller, name) for name in ("reviews", "details", "other.elsewhere")]
    assert found == [reviews, details, other]


def test_the_namespace_tells_entries_of_one_host_apart(town: Mesh, caller: Client) -> None:
    for namespace, address in (("default", "198.51.100.1"), ("elsewhere", "198.51.100.2")):
        town.apply(f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: books-{namespace}, namespace: {namespace}}}
spec:
  hosts: [books.example]
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP}}]
  endpoints: [{{address: {address}}}]
""")
    assert caller.get("http://books.example:9080/").workload == "books-default"
    town.apply(sidecar(egress("elsewhere/books.example")))
    assert caller.get("http://books.example:9080/").workload == "books-elsewhere"


def test_destinations_of_visible_rules_are_reached(town: Mesh, caller: Client) -> None:
    """A rule that a workload sees may lead where it could not go itself."""
    town.apply(
        sidecar(egress("./reviews.default.svc.cluster.local"))
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{route: [{destination: {host: other.elsewhere.svc.cluster.local}}]}]}
"""
    )
    assert caller.get("http://reviews:9080/").workload == "other"


def test_rules_of_other_hosts_are_out_of_scope(town: Mesh, caller: Client) -> None:
    town.apply("""
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r, namespace: elsewhere}
spec: {hosts: [reviews.default.svc.cluster.local], http: [{directResponse: {status: 418}}]}
""")
    assert caller.get("http://reviews:9080/").status == 418
    town.apply(sidecar(egress("./*")))
    assert caller.get("http://reviews:9080/").status == 200


# --- which Sidecar ------------------------------------------------------------------------------------


@pytest.mark.covers("Sidecar.workloadSelector.labels")
def test_the_workloads_own_then_the_namespaces_then_the_meshs(town: Mesh) -> None:
    root = "rootNamespace: mesh-root\n" + CLOSED
    town.apply(
        sidecar(egress("*/details.default.svc.cluster.local"), namespace="mesh-root"),
        mesh_config=root,
    )
    caller, other = town.client("caller"), town.client("other")
    assert [reaches(c, "reviews.default") for c in (caller, other)] == [False, False]
    assert [reaches(c, "details.default") for c in (caller, other)] == [True, True]
    town.apply(sidecar(egress("*/reviews.default.svc.cluster.local")), mesh_config=root)
    assert [reaches(c, "reviews.default") for c in (caller, other)] == [True, False]
    blue = "workloadSelector: {labels: {team: blue}}, "
    town.apply(sidecar(blue + egress("elsewhere/*"), "blue"), mesh_config=root)
    assert [reaches(caller, name) for name in ("reviews", "other.elsewhere")] == [False, True]
    assert reaches(town.client("details-v1"), "reviews")


def test_the_point_means_the_workloads_namespace_in_the_meshs_sidecar(town: Mesh) -> None:
    town.apply(
        sidecar(egress("./*"), namespace="mesh-root"),
        mesh_config="rootNamespace: mesh-root\n" + CLOSED,
    )
    assert reaches(town.client("caller"), "reviews")
    assert not reaches(town.client("caller"), "other.elsewhere")
    assert reaches(town.client("other"), "other")
    assert not reaches(town.client("other"), "reviews.default")


# --- egress listeners ---------------------------------------------------------------------------------


@pytest.mark.covers(
    "Sidecar.egress.port.number", "Sidecar.egress.port.protocol", "Sidecar.egress.port.name"
)
def test_a_listener_for_one_port_offers_its_own_hosts(town: Mesh, caller: Client) -> None:
    """What it does not name is not reachable there, whatever other listeners say."""
    town.apply(
        sidecar(
            "egress: [{port: {number: 9080, protocol: HTTP, name: web}, "
            "hosts: [./reviews.default.svc.cluster.local]}, {hosts: ['./*']}]"
        )
    )
    assert reaches(caller, "reviews")
    assert not reaches(caller, "details")
    assert reaches(caller, "details", 9081)


@pytest.mark.covers("Sidecar.egress.port.protocol")
def test_a_listeners_protocol_holds_for_its_services(town: Mesh, caller: Client) -> None:
    town.apply(
        sidecar(
            "egress: [{port: {number: 9080, protocol: TCP, name: web}, "
            "hosts: [./reviews.default.svc.cluster.local]}]"
        )
    )
    answer = caller.get("http://reviews:9080/")
    assert answer.first is not None
    assert answer.first.protocol == "TCP"


@pytest.mark.covers("Sidecar.egress.captureMode=NONE", "Sidecar.egress.bind")
def test_a_listener_of_its_own_address(town: Mesh, caller: Client) -> None:
    """The application connects to the proxy itself; nothing is captured."""
    town.apply(
        sidecar(
            "workloadSelector: {labels: {team: blue}}, egress: [{port: {number: 7000, protocol: TCP, name: bytes}, bind: 127.0.0.1, captureMode: NONE, "
            "hosts: [./ledger.default.svc.cluster.local]}, "
            "{port: {number: 9080, protocol: HTTP, name: web}, captureMode: NONE, "
            "hosts: [./reviews.default.svc.cluster.local]}]"
        )
        + """
---
apiVersion: v1
kind: Service
metadata: {name: ledger}
spec: {selector: {app: details}, ports: [{name: tcp, port: 7000, targetPort: 9000}]}
"""
    )
    assert caller.get("http://localhost:9080/", host="reviews").workload.startswith("reviews-")
    assert caller.get("http://localhost:9080/", host="details").status == 502
    with caller.tcp("localhost:7000") as connection:
        assert connection.ask("hello")["workload"] == "details-v1"


@pytest.mark.covers("Sidecar.egress.captureMode=IPTABLES", "Sidecar.egress.captureMode=DEFAULT")
@pytest.mark.parametrize("mode", ["DEFAULT", "IPTABLES"])
def test_a_captured_listener(town: Mesh, caller: Client, mode: str) -> None:
    town.apply(
        sidecar(
            f"egress: [{{captureMode: {mode}, port: {{number: 9080, protocol: HTTP, name: web}}, "
            "hosts: [./reviews.default.svc.cluster.local]}]"
        )
    )
    assert reaches(caller, "reviews")
    assert not reaches(caller, "details")


# --- ingress listeners --------------------------------------------------------------------------------


def inbound(listeners: str, more: str = "") -> str:
    """A Sidecar for ``details`` with these ingress listeners."""
    return sidecar(
        f"workloadSelector: {{labels: {{app: details}}}}, ingress: [{listeners}]{more}", "details"
    )


PORT = "port: {number: 9080, protocol: HTTP, name: web}"


@pytest.mark.covers(
    "Sidecar.ingress.port.number", "Sidecar.ingress.port.protocol", "Sidecar.ingress.port.name"
)
def test_ingress_replaces_what_services_say(shop: Mesh, caller: Client) -> None:
    """The port keeps its mTLS; one that is not named is passed through without rules."""
    shop.apply(inbound(PORT))
    answer = caller.get("http://details:9080/")
    assert answer.mtls
    assert answer.last is not None
    assert answer.last.cluster == "inbound|9080||"
    answer = caller.get("http://details:9081/")
    assert answer.last is not None
    assert answer.last.cluster == "InboundPassthroughCluster"


@pytest.mark.covers("Sidecar.ingress.port.protocol")
def test_ingress_says_what_a_port_speaks(shop: Mesh, caller: Client) -> None:
    shop.apply(inbound(PORT.replace("HTTP", "TCP")))
    shop.apply("""
apiVersion: v1
kind: Service
metadata: {name: details}
spec: {selector: {app: details}, ports: [{name: tcp, port: 9080}]}
""")
    with caller.tcp("details:9080") as connection:
        assert connection.ask("hello")["workload"] == "details-v1"
        assert connection.mtls


@pytest.mark.covers("Sidecar.ingress.defaultEndpoint")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_default_endpoint_is_another_port(shop: Mesh, caller: Client, host: str) -> None:
    shop.apply(inbound(f"{{{PORT}, defaultEndpoint: '{host}:9081'}}".strip()))
    assert caller.get("http://details:9080/").json()["port"] == 9081


class _UnixServer(http.server.HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Without the look-up of a host name that the base class makes."""
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "unix", 0

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """A client has no address here."""
        return self.socket.accept()[0], ("unix", 0)


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[str]:
    """The path of an HTTP server's socket."""
    path = tmp_path / "app.sock"
    server = _UnixServer(str(path), _Hello)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield str(path)
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.covers("Sidecar.ingress.defaultEndpoint")
def test_default_endpoint_is_a_unix_socket(shop: Mesh, caller: Client, unix: str) -> None:
    shop.apply(inbound(f"{{{PORT}, defaultEndpoint: 'unix://{unix}'}}"))
    answer = caller.get("http://details:9080/")
    assert answer.text == "hello"
    assert answer.mtls


def test_an_entrys_endpoint_is_a_unix_socket(shop: Mesh, caller: Client, unix: str) -> None:
    shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: local}}
spec:
  hosts: [local.example]
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP}}]
  endpoints: [{{address: "unix://{unix}"}}]
""")
    assert caller.get("http://local.example:9080/").text == "hello"


@pytest.mark.covers("Sidecar.ingress.captureMode=NONE", "Sidecar.ingress.bind")
def test_ingress_without_capture(shop: Mesh, caller: Client) -> None:
    """Clients connect to the listener itself; without an original address it hands on to the loopback."""
    shop.apply(
        inbound(
            "{port: {number: 9080, protocol: HTTP, name: web}, bind: 0.0.0.0, captureMode: NONE, defaultEndpoint: '127.0.0.1:9081'}"
        )
    )
    answer = caller.get("http://details:9080/")
    assert answer.json()["port"] == 9081
    assert answer.mtls


# --- connection pools of what comes in ----------------------------------------------------------------


def inbound_stat(shop: Mesh, name: str) -> int:
    """A statistic of the way to the application of ``details``."""
    full = f"cluster.inbound|9080||.{name}"
    return shop.stats("details-v1", f"inbound.*{name}").get(full, 0)


Setting = Callable[[str], str]


@pytest.mark.covers(
    "Sidecar.ingress.connectionPool.http.maxRequestsPerConnection", "Sidecar.inboundConnectionPool"
)
@pytest.mark.parametrize(
    "setting",
    [
        lambda pool: inbound(f"{{{PORT}, connectionPool: {pool}}}"),
        lambda pool: sidecar(f"workloadSelector: {{labels: {{app: details}}}}, inboundConnectionPool: {pool}", "details"),
        lambda pool: inbound(f"{{{PORT}, connectionPool: {pool}}}", ", inboundConnectionPool: {http: {maxRequestsPerConnection: 100}}"),
    ],
    ids=["listener", "workload", "listener over workload"],
)  # fmt: skip
def test_pools_of_a_listener_and_of_the_workload(
    shop: Mesh, caller: Client, setting: Setting
) -> None:
    shop.apply(setting("{http: {maxRequestsPerConnection: 1}}"))
    before = inbound_stat(shop, "upstream_cx_total")
    caller.send("http://details:9080/", n=6)
    assert inbound_stat(shop, "upstream_cx_total") - before == 6


def application(shop: Mesh) -> Any:
    """The cluster from the proxy of ``details`` to its application, as Envoy says that it has it."""
    dump = shop.config("details-v1")["configs"]
    clusters = next(part for part in dump if part["@type"].endswith("ClustersConfigDump"))
    named = (entry["cluster"] for entry in clusters["dynamic_active_clusters"])
    return next(cluster for cluster in named if cluster["name"] == "inbound|9080||")


HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@pytest.mark.covers(
    "Sidecar.ingress.connectionPool.tcp.connectTimeout",
    "Sidecar.ingress.connectionPool.tcp.tcpKeepalive.probes",
    "Sidecar.ingress.connectionPool.tcp.tcpKeepalive.time",
    "Sidecar.ingress.connectionPool.tcp.tcpKeepalive.interval",
    "Sidecar.ingress.connectionPool.http.maxRetries",
    "Sidecar.ingress.connectionPool.http.maxConcurrentStreams",
    "Sidecar.ingress.connectionPool.http.http2KeepAlive.interval",
    "Sidecar.ingress.connectionPool.http.http2KeepAlive.timeout",
)
def test_settings_that_only_the_kernel_or_the_codec_sees(shop: Mesh, caller: Client) -> None:
    """They do not show in an answer: a real proxy has taken them, and requests still pass."""
    shop.apply(
        inbound(
            f"{{{PORT.replace('HTTP', 'HTTP2')}, connectionPool: {{"
            "tcp: {connectTimeout: 3s, tcpKeepalive: {probes: 5, time: 60s, interval: 10s}}, "
            "http: {maxRetries: 7, maxConcurrentStreams: 20, http2KeepAlive: {interval: 9s, timeout: 2s}}}}"
        )
    )
    cluster = application(shop)
    assert cluster["connect_timeout"] == "3s"
    assert cluster["upstream_connection_options"]["tcp_keepalive"] == {
        "keepalive_probes": 5, "keepalive_time": 60, "keepalive_interval": 10,
    }  # fmt: skip
    assert cluster["circuit_breakers"]["thresholds"][0]["max_retries"] == 7
    options = cluster["typed_extension_protocol_options"][HTTP_OPTIONS]
    http2 = options["explicit_http_config"]["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == 20
    assert http2["connection_keepalive"] == {"interval": "9s", "timeout": "2s"}
    assert caller.get("http://details:9080/").workload == "details-v1"


@pytest.mark.covers(
    "Sidecar.ingress.connectionPool.http.idleTimeout",
    "Sidecar.ingress.connectionPool.tcp.maxConnectionDuration",
)
@pytest.mark.parametrize(
    "pool", ["http: {idleTimeout: 0.2s}", "tcp: {maxConnectionDuration: 0.2s}"]
)
def test_connections_to_the_application_end(shop: Mesh, caller: Client, pool: str) -> None:
    shop.apply(inbound(f"{{{PORT}, connectionPool: {{{pool}}}}}"))
    caller.get("http://details:9080/")
    eventually(lambda: inbound_stat(shop, "upstream_cx_active") == 0)


@pytest.mark.covers("Sidecar.ingress.connectionPool.tcp.idleTimeout")
def test_idle_bytes_end(shop: Mesh, caller: Client) -> None:
    shop.apply(
        inbound(
            "{port: {number: 9000, protocol: TCP, name: tcp}, connectionPool: {tcp: {idleTimeout: 0.2s}}}"
        )
    )
    with caller.tcp("details:9000") as connection:
        assert connection.ask("hello")["workload"] == "details-v1"
        assert connection.read_line() == b""


@pytest.mark.covers("Sidecar.ingress.connectionPool.http.useClientProtocol")
@pytest.mark.parametrize("http2", [True, False])
def test_the_application_gets_the_clients_protocol(shop: Mesh, caller: Client, http2: bool) -> None:
    shop.apply(inbound(f"{{{PORT}, connectionPool: {{http: {{useClientProtocol: true}}}}}}"))
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: details}
spec: {host: details, trafficPolicy: {connectionPool: {http: {useClientProtocol: true}}}}
""")
    answer = caller.get("http://details:9080/", http2=http2)
    assert answer.json()["protocol"] == ("http/2" if http2 else "http/1.1")


@pytest.mark.covers("Sidecar.ingress.connectionPool.http.h2UpgradePolicy")
def test_an_upgrade_is_between_proxies_only(shop: Mesh, caller: Client) -> None:
    """The application gets what its port declares."""
    shop.apply(inbound(f"{{{PORT}, connectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}}}}}"))
    assert caller.get("http://details:9080/").json()["protocol"] == "http/1.1"
