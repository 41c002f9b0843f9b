"""One proxy container without a cluster: a temporary file system, free ports, the real agent, a real Envoy."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from google.protobuf import json_format

from agent.control_plane import CDS, ISTIOD, LDS, ControlPlane
from meltemi.agent import secrets
from meltemi.envoy.tls import downstream_socket, upstream_socket
from meltemi.ir.tls import WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS, DownstreamTls, UpstreamTls
from meltemi.model.names import CERT_DIR

TYPE = "type.googleapis.com/envoy."
DEADLINE_S = 30.0
IN_FILES = (
    *("POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT", "INSTANCE_IP", "MESH_TOKEN_FILE"),
    *("XDS_ROOT_CA", "ISTIO_META_WORKLOAD_NAME", "ISTIO_META_CLUSTER_ID", "MESH_PODINFO_DIR"),
)


def free_port() -> int:
    """A port that nobody listens on, below the range from which the kernel takes ports for clients."""
    while True:
        port = random.randrange(12000, 32000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def eventually(check: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true result of ``check``, which may raise until then."""
    end = time.monotonic() + deadline_s
    last: object = None
    while time.monotonic() < end:
        try:
            last = check()
            if last:
                return last
        except (OSError, http.client.HTTPException) as error:
            last = error
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s: {what}; last: {last!r}")


class Application:
    """The container beside the proxy. ``/slow`` answers only after ``release``."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()
        self.seen: list[tuple[str, dict[str, str]]] = []
        application = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                application.seen.append((self.path, dict(self.headers)))
                if self.path == "/slow":
                    application.entered.set()
                    application.release.wait(DEADLINE_S)
                body = b"app_requests_total 7\n" if self.path == "/metrics" else b"hello"
                self.send_response({"/moved": 302, "/broken": 500}.get(self.path, 200))
                if self.path == "/moved":
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class Container:
    """The proxy container. ``start`` may be called again after ``end``: a container restart."""

    def __init__(self, directory: Path, control_plane: ControlPlane) -> None:
        self.directory, self.control_plane = directory, control_plane
        self.admin, self.status, self.health, self.prometheus, self.inbound = (
            free_port() for _ in range(5)
        )
        self.credentials = directory / "credentials"
        self.token = directory / "istio-token"
        self.token.write_text("token-1")
        self.root = directory / "istio" / "root-cert.pem"
        self.root.parent.mkdir()
        self.root.write_text(control_plane.authority.pem)
        (directory / "podinfo").mkdir()
        (directory / "podinfo" / "labels").write_text('app="reviews"\nversion="v1"\n')
        (directory / "podinfo" / "annotations").write_text("")
        self.log = directory / "log"
        self.environment: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def _environment(self) -> dict[str, str]:
        config = {
            "discoveryAddress": f"127.0.0.1:{self.control_plane.port}",
            "proxyAdminPort": self.admin,
            "statusPort": self.status,
            "concurrency": 1,
            "terminationDrainDuration": "0.2s",
            **self.config,
        }
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ISTIO_", "PROXY_"))},
            "PROXY_CONFIG": json.dumps(config),
            "POD_NAME": "reviews-v1-abc",
            "POD_NAMESPACE": "bookinfo",
            "SERVICE_ACCOUNT": "bookinfo-reviews",
            "INSTANCE_IP": "127.0.0.1",
            "ISTIO_META_WORKLOAD_NAME": "reviews-v1",
            "ISTIO_META_CLUSTER_ID": "Kubernetes",
            "ISTIO_META_INTERCEPTION_MODE": "NONE",
            "ISTIOD_SAN": ISTIOD,
            "ENVOY_STATUS_PORT": str(self.health),
            "ENVOY_PROMETHEUS_PORT": str(self.prometheus),
            "MESH_CREDENTIALS_DIR": str(self.credentials),
            "MESH_CONFIG_DIR": str(self.directory / "proxy"),
            "MESH_PODINFO_DIR": str(self.directory / "podinfo"),
            "MESH_TOKEN_FILE": str(self.token),
            "XDS_ROOT_CA": str(self.root),
            "MESH_FILE_WATCH_INTERVAL": "0.1s",
            **self.environment,
        }

    def start(self, *flags: str) -> None:
        self._run("proxy", "sidecar", *flags, environment=self._environment())

    def start_machine(self, folder: Path) -> None:
        """Start from a machine's files: what they say is not in the environment."""
        own = {name: v for name, v in self._environment().items() if name not in IN_FILES}
        self._run("machine", str(folder), "--no-capture", environment=own)

    def _run(self, *arguments: str, environment: dict[str, str]) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meltemi.programs.node_agent", *arguments],
                env=environment,
                stdout=output,
                stderr=output,
            )

    def start_ready(self) -> None:
        self.start()
        self.await_ready()

    def await_ready(self) -> None:
        eventually(
            lambda: self.get(self.status, "/healthz/ready")[0] == 200, f"ready\n{self.text()}"
        )

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def serial(self) -> int:
        """Serial number of the certificate that Envoy is given."""
        return self.certificate().serial_number

    def certificate(self) -> x509.Certificate:
        """The certificate that Envoy is given."""
        chain, _ = secrets.read_default((self.credentials / secrets.DEFAULT_FILE).read_text())
        return x509.load_pem_x509_certificate(chain.encode())

    def roots(self) -> str:
        """The roots that Envoy is given, PEM."""
        return secrets.read_rootca((self.credentials / secrets.ROOTCA_FILE).read_text())[0]

    def connect_tls(self) -> ssl.SSLSocket:
        """A mutual TLS connection to the inbound listener, in the container's own identity."""
        chain, key = secrets.read_default((self.credentials / secrets.DEFAULT_FILE).read_text())
        pair = self.directory / "client.pem"
        pair.write_text(chain + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_cert_chain(pair)
        context.load_verify_locations(cadata=self.roots())
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.inbound)))

    def tls(self, made: Any) -> dict[str, Any]:
        """A transport socket of the mesh, with the workload's files where this container has them."""
        text = json_format.MessageToJson(made).replace(CERT_DIR, str(self.credentials))
        socket_config: dict[str, Any] = json.loads(text)
        return socket_config

    def serve(self, application: Application, *, tls: bool = False) -> None:
        """Give Envoy an inbound listener in front of the application; with ``tls``, also clusters of the mesh."""
        self.forward(application.port, tls=tls)

    def forward(self, port: int, *, tls: bool = False) -> None:
        """Give Envoy an inbound listener whose requests go to a port of this machine."""
        endpoint = {"socketAddress": {"address": "127.0.0.1", "portValue": port}}
        cluster: dict[str, Any] = {
            "name": "app",
            "connectTimeout": "1s",
            "loadAssignment": {
                "clusterName": "app",
                "endpoints": [{"lbEndpoints": [{"endpoint": {"address": endpoint}}]}],
            },
        }
        counter = {
            "stat": {
                "name": "requests_total",
                "tags": [
                    {"name": "reporter", "valueFormat": "destination"},
                    {"name": "source_workload", "valueFormat": "%REQ(X-NOBODY)%"},
                    {"name": "grpc_response_status", "valueFormat": "%REQ(X-NOBODY)%"},
                    {"name": "destination_workload", "valueFormat": "%ENVIRONMENT(MESH_WORKLOAD)%"},
                ],
            },
            "valueFixed": "1",
        }
        manager = {
            "@type": TYPE
            + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "statPrefix": "inbound",
            "routeConfig": {
                "virtualHosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                    }
                ]
            },
            "accessLog": [
                {
                    "name": "stats",
                    "typedConfig": {
                        "@type": TYPE + "extensions.access_loggers.stats.v3.Config",
                        "statPrefix": "istio",
                        "counters": [counter],
                    },
                }
            ],
            "httpFilters": [
                {
                    "name": "router",
                    "typedConfig": {"@type": TYPE + "extensions.filters.http.router.v3.Router"},
                }
            ],
        }
        listener: dict[str, Any] = {
            "name": "inbound",
            "address": {"socketAddress": {"address": "127.0.0.1", "portValue": self.inbound}},
            "trafficDirection": "INBOUND",
            "filterChains": [{"filters": [{"name": "hcm", "typedConfig": manager}]}],
        }
        clusters = {"app": cluster}
        if tls:
            pair, roots = WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS
            inbound = downstream_socket(DownstreamTls((pair,), roots, "required"))
            listener["filterChains"][0]["transportSocket"] = self.tls(inbound)
            for name in ("one", "two"):
                outbound = self.tls(
                    upstream_socket(UpstreamTls(sni=name, certificate=pair, roots=roots))
                )
                clusters[name] = {"name": name, "connectTimeout": "1s", "transportSocket": outbound}
        self.control_plane.resources = {CDS: clusters, LDS: {"inbound": listener}}

    def get(self, port: int, path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def debug(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.get(self.status, "/debug")[1])
        return result

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
