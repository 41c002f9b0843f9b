"""A control plane for the agent's tests: a real CA and a real Delta ADS server over TLS, on gRPC.

It signs what it is asked to sign, remembers the tokens and nodes that it saw, and serves the clusters and
listeners that a test gave it.
"""

from __future__ import annotations

import datetime
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.access_loggers.stats.v3 import stats_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2, json_format

from meltemi.protos import ca_pb2

# Imported for their descriptors: resources are written as JSON below.
DESCRIPTORS = (
    bootstrap_pb2,
    cluster_pb2,
    listener_pb2,
    stats_pb2,
    router_pb2,
    http_connection_manager_pb2,
)
CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
LDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
HEALTH = "type.googleapis.com/istio.v1.HealthInformation"
ISTIOD = "istiod.istio-system.svc"


SKEW_S = 120.0  # as istiod does, certificates are dated back


class Authority:
    """A root and what it signs."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        unique = f"test root {x509.random_serial_number():x}"[:60]
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, unique)])
        self.certificate = (
            self._builder(name, name, 3600)
            .public_key(self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @staticmethod
    def _builder(
        subject: x509.Name, issuer: x509.Name, life_s: float, age_s: float = 0.0
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=age_s))
            .not_valid_after(now + datetime.timedelta(seconds=life_s))
        )

    def sign(
        self,
        public_key: Any,
        names: x509.SubjectAlternativeName,
        life_s: float,
        age_s: float = 0.0,
    ) -> str:
        """``life_s`` from now on; ``age_s`` of its life are over already."""
        builder = self._builder(x509.Name([]), self.certificate.subject, life_s, age_s)
        certificate = (
            builder.public_key(public_key)
            .add_extension(names, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_credentials(self, mutual: bool = False) -> grpc.ServerCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(ISTIOD)])
        certificate = self.sign(key.public_key(), names, 3600)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        pair = (pem, (certificate + self.pem).encode())
        if mutual:
            return grpc.ssl_server_credentials([pair], self.pem.encode(), True)
        return grpc.ssl_server_credentials([pair])


@dataclass
class ControlPlane:
    """One istiod. Start it with ``start``; every field may be changed while it runs."""

    authority: Authority = field(default_factory=Authority)
    life_s: float = 3600.0
    refuse: grpc.StatusCode | None = None
    mute: str = ""  # end streams that ask for this type
    impostor: str = ""  # sign this identity instead of the one asked for
    resources: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    stream_tokens: list[str] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)  # of health: "" or what is wrong
    requests: int = 0
    callers: list[str] = field(default_factory=list)  # who has shown a certificate, per call
    port: int = 0
    mtls_port: int = 0
    host: str = "127.0.0.1"

    def start(self) -> None:
        self._closing = threading.Event()
        self.server = grpc.server(ThreadPoolExecutor(8))
        create = grpc.unary_unary_rpc_method_handler(
            self._create,
            ca_pb2.IstioCertificateRequest.FromString,
            ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        stream = grpc.stream_stream_rpc_method_handler(
            self._stream,
            discovery_pb2.DeltaDiscoveryRequest.FromString,
            discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
        )
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "istio.v1.auth.IstioCertificateService", {"CreateCertificate": create}
                ),
                grpc.method_handlers_generic_handler(
                    "envoy.service.discovery.v3.AggregatedDiscoveryService",
                    {"DeltaAggregatedResources": stream},
                ),
            )
        )
        address = f"{self.host}:{self.port}"
        self.port = self.server.add_secure_port(address, self.authority.server_credentials())
        address = f"{self.host}:{self.mtls_port}"
        by_certificate = self.authority.server_credentials(mutual=True)
        self.mtls_port = self.server.add_secure_port(address, by_certificate)
        self.server.start()

    def stop(self) -> None:
        self._closing.set()
        self.server.stop(None).wait()

    def _create(
        self, request: ca_pb2.IstioCertificateRequest, context: grpc.ServicerContext
    ) -> ca_pb2.IstioCertificateResponse:
        self.requests += 1
        self._note_caller(context)
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        if self.refuse:
            context.abort(self.refuse, "the test refuses")
        csr = x509.load_pem_x509_csr(request.csr.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if self.impostor:
            uri = x509.UniformResourceIdentifier(self.impostor)
            names = x509.SubjectAlternativeName([uri])
        leaf = self.authority.sign(csr.public_key(), names, self.life_s, SKEW_S)
        return ca_pb2.IstioCertificateResponse(cert_chain=[leaf, self.authority.pem])

    def _note_caller(self, context: grpc.ServicerContext) -> None:
        shown = context.auth_context().get("x509_pem_cert")
        if shown:
            names = x509.load_pem_x509_certificate(shown[0]).extensions
            found = names.get_extension_for_class(x509.SubjectAlternativeName).value
            self.callers += found.get_values_for_type(x509.UniformResourceIdentifier)

    def _stream(self, requests: Any, context: grpc.ServicerContext) -> Any:
        self._note_caller(context)
        self.stream_tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        sent: set[str] = set()
        for request in requests:
            if request.node.id:
                self.nodes.append(request.node)
            if request.type_url == HEALTH:
                self.reports.append(request.error_detail.message)
                continue
            if request.type_url in sent:
                continue
            if request.type_url == self.mute:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the test is mute")
            sent.add(request.type_url)
            yield self._response(request.type_url)

    def _response(self, type_url: str) -> discovery_pb2.DeltaDiscoveryResponse:
        response = discovery_pb2.DeltaDiscoveryResponse(
            type_url=type_url, nonce=type_url, system_version_info="1"
        )
        for name, body in self.resources.get(type_url, {}).items():
            packed = json_format.ParseDict({"@type": type_url, **body}, any_pb2.Any())
            response.resources.add(name=name, version="1", resource=packed)
        return response
