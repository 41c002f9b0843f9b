"""DestinationRule settings whose effect shows in requests through a real Envoy."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from envoy_rig import Backend, Envoy, TcpBackend, ask, fetch, free_port, wait_for
from live import running
from mesh_world import build_world, pod, service

pytestmark = pytest.mark.envoy
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def _respond(handler: BaseHTTPRequestHandler) -> int | None:
    if handler.path.startswith("/slow"):
        time.sleep(0.4)
    if "bad" in handler.path:
        return 500
    if handler.path.startswith("/teapot"):
        return 418
    return None


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[Backend]]:
    """Three instances on one port of three addresses."""
    first = Backend(HOSTS[0], HOSTS[0], respond=_respond)
    made = [first, *(Backend(host, host, port=first.port, respond=_respond) for host in HOSTS[1:])]
    yield made
    for backend in made:
        backend.close()


def _rule(policy: str, subsets: str = "") -> str:
    tail = f"  subsets:\n{subsets}" if subsets else ""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web
  trafficPolicy: {policy}
{tail}
"""


@contextmanager
def _mesh(
    folder: Path, fleet: list[Backend], rules: str, *, mesh: str = ""
) -> Iterator[tuple[int, Envoy]]:
    """A client of the fleet with these rules."""
    pods = "".join(
        pod(f"web-{index}", host, labels={"app": "web", "version": f"v{index}"}, mtls=False)
        for index, host in enumerate(HOSTS)
    )
    world = build_world(
        service("web", ("http", 9080, fleet[0].port)) + pods + pod("client", "10.1.0.6") + rules,
        mesh=mesh,
    )
    assert all("deprecated" in finding.text for finding in world.findings), world.findings
    assert not world.ir("client").findings
    port = free_port()
    with running(folder, world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}) as envoy:
        yield port, envoy


def _who(port: int, path: str = "/", **headers: str) -> str:
    return str(fetch(port, path, host="web", headers=headers).json["name"])


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
)
@pytest.mark.parametrize(
    ("setting", "same", "other"),
    [
        ("httpHeaderName: x-user", ({"x-user": "a"}, "/"), ({"x-user": "{}"}, "/")),
        ("httpCookie: {name: u, ttl: 0s}", ({"cookie": "u=a"}, "/"), ({"cookie": "u={}"}, "/")),
        ("httpQueryParameterName: u", ({}, "/?u=a"), ({}, "/?u={}")),
        ("httpHeaderName: x-user, maglev: {tableSize: 251}", ({"x-user": "a"}, "/"), ({"x-user": "{}"}, "/")),
        ("httpHeaderName: x-user, ringHash: {minimumRingSize: 64}", ({"x-user": "a"}, "/"), ({"x-user": "{}"}, "/")),
        ("httpHeaderName: x-user, minimumRingSize: 128", ({"x-user": "a"}, "/"), ({"x-user": "{}"}, "/")),
    ],
)  # fmt: skip
def test_consistent_hash(tmp_path: Path, fleet, setting, same, other) -> None:  # type: ignore[no-untyped-def]
    """Equal keys go to one instance, different keys to several."""
    with _mesh(tmp_path, fleet, _rule(f"{{loadBalancer: {{consistentHash: {{{setting}}}}}}}")) as (
        port,
        _,
    ):
        headers, path = same
        assert len({_who(port, path, **headers) for _ in range(8)}) == 1
        headers, path = other
        seen = {
            _who(port, path.format(i), **{k: v.format(i) for k, v in headers.items()})
            for i in range(40)
        }
        assert len(seen) > 1


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes.name",
    "DestinationRule.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes.value",
)
def test_consistent_hash_cookie_is_made(tmp_path: Path, fleet: list[Backend]) -> None:
    """With a ttl the proxy sets the cookie, with its path and attributes."""
    cookie = "{name: u, path: /p, ttl: 60s, attributes: [{name: SameSite, value: Lax}]}"
    with _mesh(
        tmp_path, fleet, _rule(f"{{loadBalancer: {{consistentHash: {{httpCookie: {cookie}}}}}}}")
    ) as (port, _):
        made = fetch(port, "/", host="web").headers["set-cookie"]
        assert made.startswith("u=")
        for part in ("Max-Age=60", "Path=/p", "SameSite=Lax"):
            assert part in made


def test_hash_by_source_address(tmp_path: Path, fleet: list[Backend]) -> None:
    """One client stays with one instance."""
    with _mesh(tmp_path, fleet, _rule("{loadBalancer: {consistentHash: {useSourceIp: true}}}")) as (
        port,
        _,
    ):
        assert len({_who(port) for _ in range(10)}) == 1


@pytest.mark.parametrize(
    "balancer", ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "LEAST_CONN", "UNSPECIFIED"]
)
def test_simple_balancers_use_everyone(tmp_path: Path, fleet: list[Backend], balancer: str) -> None:
    """Every instance gets its part."""
    with _mesh(tmp_path, fleet, _rule(f"{{loadBalancer: {{simple: {balancer}}}}}")) as (port, _):
        seen = Counter(_who(port) for _ in range(45))
        assert set(seen) == set(HOSTS)
        if balancer == "ROUND_ROBIN":
            assert max(seen.values()) - min(seen.values()) <= 2


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.loadBalancer.warmup.duration",
    "DestinationRule.trafficPolicy.loadBalancer.warmup.minimumPercent",
    "DestinationRule.trafficPolicy.loadBalancer.warmup.aggression",
    "DestinationRule.trafficPolicy.loadBalancer.warmupDurationSecs",
)
def test_warm_up_is_loaded(tmp_path: Path, fleet: list[Backend]) -> None:
    """A warming fleet serves; Envoy has the window, the aggression and the least weight."""
    warm = "{duration: 30s, minimumPercent: 20, aggression: 2}"
    for name, simple in (("a", "ROUND_ROBIN"), ("b", "LEAST_REQUEST")):
        rule = _rule(f"{{loadBalancer: {{simple: {simple}, warmup: {warm}}}}}")
        with _mesh(tmp_path / name, fleet, rule) as (port, envoy):
            assert fetch(port, host="web").status == 200
            dump = fetch(envoy.admin, "/config_dump?mask=dynamic_active_clusters").body.decode()
            for part in ('"slow_start_window": "30s"', '"default_value": 2', '"value": 20'):
                assert part in dump
    rule = _rule("{loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 40s}}")
    with _mesh(tmp_path / "c", fleet, rule) as (port, envoy):
        assert fetch(port, host="web").status == 200
        dump = fetch(envoy.admin, "/config_dump?mask=dynamic_active_clusters").body.decode()
        assert '"slow_start_window": "40s"' in dump


@pytest.mark.covers("DestinationRule.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes")
def test_outlier_detection_counts_chosen_statuses(tmp_path: Path, fleet: list[Backend]) -> None:
    """outlierDetectionHttpErrorCodes: 418 ejects, 500 does not."""
    rule = _rule(
        "{outlierDetection: {consecutive5xxErrors: 2, interval: 60s, baseEjectionTime: 60s, "
        "maxEjectionPercent: 100, outlierDetectionHttpErrorCodes: [418, 429]}}"
    )
    stat = "cluster.outbound|9080||web.default.svc.cluster.local.outlier_detection.ejections_active"
    with _mesh(tmp_path, fleet, rule) as (port, envoy):
        for _ in range(12):
            assert fetch(port, "/bad", host="web").status == 500
        assert envoy.counter(stat) == 0
        for _ in range(12):
            fetch(port, "/teapot", host="web")
        assert envoy.counter(stat) > 0


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.portLevelSettings.connectionPool.tcp.maxConnections"
)
def test_circuit_breaker_and_port_level_settings(tmp_path: Path, fleet: list[Backend]) -> None:
    """Settings of a port replace the general ones: here they open the breaker that is otherwise wide."""
    rule = _rule(
        "{connectionPool: {http: {http1MaxPendingRequests: 1000}}, portLevelSettings: "
        "[{port: {number: 9080}, connectionPool: {tcp: {maxConnections: 1}, "
        "http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}}]}"
    )
    with _mesh(tmp_path, fleet, rule) as (port, _):
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(fetch(port, "/slow", host="web").status))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {200, 503} == set(found)


@pytest.mark.covers("DestinationRule.trafficPolicy.retryBudget.budgetInterval")
def test_retry_budget(tmp_path: Path, fleet: list[Backend]) -> None:
    """A budget of one retry at a time: of many failing requests some are not retried, and that is counted."""
    rule = (
        _rule("{retryBudget: {percent: 0, minRetryConcurrency: 1, budgetInterval: 1s}}")
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - retries: {attempts: 1, retryOn: 5xx}
    route: [{destination: {host: web}}]
"""
    )
    name = "cluster.outbound|9080||web.default.svc.cluster.local"
    with _mesh(tmp_path, fleet, rule) as (port, envoy):
        threads = [
            threading.Thread(target=fetch, args=(port, "/slow-bad"), kwargs={"host": "web"})
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert envoy.counter(f"{name}.upstream_rq_retry_overflow") >= 1
        assert envoy.counter(f"{name}.upstream_rq_retry") >= 1


def test_workload_selector(tmp_path: Path, fleet: list[Backend]) -> None:
    """A rule for other workloads does not apply; the selected one's own comes before the general one."""
    general = _rule("{loadBalancer: {simple: RANDOM}}")
    mine = general.replace("name: web", "name: mine").replace(
        "host: web\n", "host: web\n  workloadSelector: {matchLabels: {app: client}}\n"
    )
    mine = mine.replace("simple: RANDOM", "consistentHash: {httpHeaderName: x-user}")
    other = mine.replace("mine", "other").replace("app: client", "app: other")
    other = other.replace("x-user", "x-other")
    with _mesh(tmp_path, fleet, general + other + mine) as (port, _):
        assert len({_who(port, "/", **{"x-user": "a"}) for _ in range(10)}) == 1


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.proxyProtocol.version=V1",
    "DestinationRule.trafficPolicy.proxyProtocol.version=V2",
)
@pytest.mark.parametrize(
    ("version", "start"), [("V1", b"PROXY TCP4 "), ("V2", b"\r\n\r\n\x00\r\nQUIT\n")]
)
def test_proxy_protocol(tmp_path: Path, version: str, start: bytes) -> None:
    """The connection begins with the PROXY header."""
    server = socket.create_server(("127.0.0.1", 0))
    number = server.getsockname()[1]
    got: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            got.append(connection.recv(4096))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    world = build_world(
        service("web", ("tcp", 9000, number))
        + pod("web", "127.0.0.1", mtls=False)
        + pod("client", "10.1.0.6")
        + _rule(f"{{proxyProtocol: {{version: {version}}}}}")
    )
    port = free_port()
    with running(tmp_path, world, "client", {"10.96.0.1_9000": [("127.0.0.1", port)]}):
        ask(port, b"hello\n")
    thread.join(5)
    server.close()
    assert got[0].startswith(start)


class _HttpProxy:
    """An HTTP proxy that takes CONNECT and POST and then echoes."""

    def __init__(self) -> None:
        proxy = self
        self.requests: list[str] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                first = self.rfile.readline().decode()
                host = ""
                chunked = False
                while (line := self.rfile.readline().decode().strip()) != "":
                    if line.lower().startswith("host:"):
                        host = line.partition(":")[2].strip()
                    chunked = chunked or "chunked" in line.lower()
                proxy.requests.append(f"{first.split()[0]} {host}")
                if chunked:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    size = int(self.rfile.readline(), 16)
                    body = self.rfile.read(size)
                    self.wfile.write(b"%x\r\n" % size + body.upper() + b"\r\n0\r\n\r\n")
                    return
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while line := self.rfile.readline().decode():
                    self.wfile.write(line.upper().encode())

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.covers(
    "DestinationRule.trafficPolicy.tunnel.protocol",
    "DestinationRule.trafficPolicy.tunnel.targetHost",
    "DestinationRule.trafficPolicy.tunnel.targetPort",
)
@pytest.mark.parametrize("protocol", ["CONNECT", "POST"])
def test_tunnel(tmp_path: Path, protocol: str) -> None:
    """Bytes go through an HTTP proxy to the host that the rule names."""
    proxy = _HttpProxy()
    try:
        world = build_world(
            service("web", ("tcp", 9000, proxy.port))
            + pod("web", "127.0.0.1", mtls=False)
            + pod("client", "10.1.0.6")
            + _rule(
                f"{{tunnel: {{protocol: {protocol}, targetHost: far.example, targetPort: 443}}}}"
            )
        )
        assert not world.findings
        port = free_port()
        with running(tmp_path, world, "client", {"10.96.0.1_9000": [("127.0.0.1", port)]}):
            assert ask(port, b"hello\n") == b"HELLO\n"
        assert proxy.requests == [f"{protocol} far.example:443"]
    finally:
        proxy.close()


def test_tcp_connection_limits(tmp_path: Path) -> None:
    """idleTimeout ends a silent connection, maxConnectionDuration any connection."""
    tcp = TcpBackend("tcp")
    try:
        for name, setting in (("a", "idleTimeout: 0.3s"), ("b", "maxConnectionDuration: 0.3s")):
            world = build_world(
                service("web", ("tcp", 9000, tcp.port))
                + pod("web", "127.0.0.1", mtls=False)
                + pod("client", "10.1.0.6")
                + _rule(f"{{connectionPool: {{tcp: {{{setting}}}}}}}")
            )
            port = free_port()
            places = {"10.96.0.1_9000": [("127.0.0.1", port)]}
            with (
                running(tmp_path / name, world, "client", places),
                socket.create_connection(("127.0.0.1", port), 10) as connection,
            ):
                connection.sendall(b"x\n")
                connection.settimeout(10)
                assert connection.recv(100) == b"tcp:X\n"
                assert connection.recv(100) == b""  # ended by the proxy
    finally:
        tcp.close()


LOCALITIES = ("r1/z1/s1", "r1/z2/s1", "r2/z1/s1")


def _places(backends: list[Backend]) -> str:
    entries = "".join(
        f"  - {{address: {host}, locality: {locality}, labels: {{zone: {locality.split('/')[1]}}}}}\n"
        for host, locality in zip(HOSTS, LOCALITIES, strict=True)
    )
    return f"""
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP, targetPort: {backends[0].port}}}]
  endpoints:
{entries}"""


@contextmanager
def _zones(
    folder: Path, fleet: list[Backend], setting: str, *, outlier: bool = True
) -> Iterator[tuple[int, Envoy]]:
    detection = (
        ", outlierDetection: {consecutive5xxErrors: 1, interval: 0.1s, baseEjectionTime: 60s, maxEjectionPercent: 100}"
        if outlier
        else ""
    )
    world = build_world(
        pod("client", "10.1.0.6")
        + _places(fleet)
        + _rule(f"{{loadBalancer: {{{setting}}}{detection}}}")
    )
    assert not world.findings, world.findings
    port = free_port()
    changes = {"locality": "r1/z1/s1", "labels": {"app": "client", "zone": "z2"}}
    places = {"0.0.0.0_9080": [("127.0.0.1", port)]}
    with running(folder, world, "client", places, **changes) as envoy:
        yield port, envoy


def test_locality_failover(tmp_path: Path, fleet: list[Backend]) -> None:
    """The own zone first; when it fails, the own region's other zone."""
    with _zones(tmp_path, fleet, "localityLbSetting: {enabled: true}") as (port, _):
        assert {_who(port) for _ in range(10)} == {HOSTS[0]}
        fetch(port, "/bad", host="web")
        wait_for("failover", lambda: _who(port) == HOSTS[1])


def test_locality_failover_to_a_region(tmp_path: Path, fleet: list[Backend]) -> None:
    """With both zones of the region gone, the region that failover names."""
    setting = "localityLbSetting: {failover: [{from: r1, to: r2}]}"
    with _zones(tmp_path, fleet, setting) as (port, _):
        for _ in range(2):
            fetch(port, "/bad", host="web")
        wait_for(
            "failover",
            lambda: fetch(port, "/bad", host="web").json and _who(port) == HOSTS[2],
        )


def test_failover_priority(tmp_path: Path, fleet: list[Backend]) -> None:
    """Labels rank before localities: the client's zone label is z2."""
    with _zones(tmp_path, fleet, "localityLbSetting: {failoverPriority: [zone]}") as (port, _):
        assert {_who(port) for _ in range(10)} == {HOSTS[1]}


def test_locality_distribute(tmp_path: Path, fleet: list[Backend]) -> None:
    """Traffic is shared by the weights of localities, outlier detection or not."""
    setting = (
        'localityLbSetting: {distribute: [{from: "r1/z1/*", to: {"r1/z2/*": 70, "r2/*": 30}}]}'
    )
    with _zones(tmp_path, fleet, setting, outlier=False) as (port, _):
        seen = Counter(_who(port) for _ in range(200))
        assert seen[HOSTS[0]] == 0
        assert 100 <= seen[HOSTS[1]] <= 175  # 140 within six standard deviations
