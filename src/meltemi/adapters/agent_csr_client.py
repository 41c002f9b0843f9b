"""Ask istiod's certificate authority for a certificate.

In: ``CertificateRequest``. Out: ``CertificateAnswer`` with a new key. Promises: the answer's certificate
belongs to the key and names the identity that was asked for; the key never leaves the process but in the
answer. Imported only by the short-lived child of ``adapters.agent_csr``.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meltemi.adapters.agent_csr import CertificateAnswer, CertificateRequest
from meltemi.agent.secrets import SecretText
from meltemi.model.names import parse_spiffe
from meltemi.protos import ca_pb2

_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_SO_MARK = 36
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class RequestError(Exception):
    """The request cannot succeed as it is; the text says why."""


def ask(request: CertificateRequest) -> CertificateAnswer:
    """The answer of istiod, or the reason why there is none."""
    try:
        key = _make_key(request.rsa_bits)
        chain = _call(request, _make_csr(key, request.identity))
        leaf = _check(chain, key, request.identity)
    except RequestError as error:
        return CertificateAnswer(error=str(error))
    return CertificateAnswer(
        chain=tuple(chain),
        key=SecretText(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode()
        ),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _make_key(rsa_bits: int) -> PrivateKey:
    """P-256 unless WORKLOAD_RSA_KEY_SIZE asks for RSA: a handshake costs a tenth, the key is made at once."""
    if rsa_bits:
        if rsa_bits < 2048:
            raise RequestError(f"WORKLOAD_RSA_KEY_SIZE is {rsa_bits}; 2048 is the least")
        return rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)
    return ec.generate_private_key(ec.SECP256R1())


def _make_csr(key: PrivateKey, identity: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)


def _read(path: str, what: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"{what} {path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise RequestError(f"{what} {path} is empty")
    return content


def _call(request: CertificateRequest, csr: bytes) -> list[str]:
    metadata = []
    if request.token_file:
        token = _read(request.token_file, "the token file").decode().strip()
        metadata.append(("authorization", f"Bearer {token}"))
    relay = _Relay(request)
    options = [("grpc.default_authority", request.server_name)]
    if request.plaintext:
        channel = grpc.insecure_channel(relay.target, options)
    else:
        root = _read(request.root_file, "the root certificate")
        options.append(("grpc.ssl_target_name_override", request.server_name))
        channel = grpc.secure_channel(relay.target, grpc.ssl_channel_credentials(root), options)
    with channel:
        create = channel.unary_unary(
            _METHOD,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        message = ca_pb2.IstioCertificateRequest(csr=csr.decode(), validity_duration=request.ttl_s)
        if request.proxy:
            hints = {"MeshProxy": request.proxy, "MeshTrusts": _trusted(request.trusted)}
            message.metadata.update(hints)
        try:
            answer = create(message, timeout=request.deadline_s, metadata=metadata)
        except grpc.RpcError as error:
            raise RequestError(_explain(request, error, relay.problem)) from error
    return list(answer.cert_chain)


def _trusted(pem: str) -> str:
    """Short names of these roots: the first 64 bits of each one's SHA-256."""
    try:
        roots = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return ""
    return ",".join(root.fingerprint(hashes.SHA256()).hex()[:16] for root in roots)


def _explain(request: CertificateRequest, error: grpc.RpcError, problem: str) -> str:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return (
            f"istiod at {request.address} does not accept the token in {request.token_file}: {details} "
            "(an expired token, or one for another audience than istio-ca)"
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return f"istiod at {request.address} does not sign for {request.identity}: {details}"
    if problem:
        return f"istiod at {request.address} cannot be reached: {problem}"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return (
            f"istiod at {request.address} has a certificate that {request.root_file} does not verify "
            f"for {request.server_name}: {details}"
        )
    return f"istiod at {request.address} answered {code.name}: {details}"


def _check(chain: list[str], key: PrivateKey, identity: str) -> x509.Certificate:
    try:
        leaf = x509.load_pem_x509_certificate(chain[0].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (IndexError, ValueError, x509.ExtensionNotFound) as error:
        raise RequestError(f"istiod's answer is no certificate: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    # The account is ours to insist on; the trust domain is istiod's to say, and can change while we live.
    if _account(identity) not in map(_account, uris):
        raise RequestError(f"istiod signed {', '.join(uris)} where {identity} was asked for")
    if leaf.public_key() != key.public_key():
        raise RequestError("istiod signed another key than the one that was sent")
    return leaf


def _account(uri: str) -> tuple[str, str] | str:
    """Namespace and service account of a SPIFFE id; another URI stands for itself."""
    parts = parse_spiffe(uri)
    return parts[1:] if parts is not None else uri


class _Relay:
    """A local socket whose other end is istiod, on a connection that carries the socket mark.

    gRPC offers no way to mark its own sockets, and traffic capture would send an unmarked one to an Envoy
    that does not run yet. It also resolves the name as every other program of the pod does.
    """

    def __init__(self, request: CertificateRequest) -> None:
        self.request, self.problem = request, ""
        host, _, port = request.address.rpartition(":")
        self.address = (host.strip("[]"), int(port))
        # An abstract name needs no file and is seen in this network namespace only.
        name = f"meltemi-csr-{os.getpid()}-{os.urandom(8).hex()}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"\0{name}")
        self.listener.listen()
        self.target = f"unix-abstract:{name}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                far = self._connect()
            except OSError as error:
                self.problem = error.strerror or str(error)
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def _connect(self) -> socket.socket:
        problem: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            *self.address, type=socket.SOCK_STREAM
        ):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.request.deadline_s)
                if self.request.mark:
                    connection.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.request.mark)
                connection.connect(address)
            except OSError as error:
                connection.close()
                problem = error
                continue
            connection.settimeout(None)
            return connection
        raise problem


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            sink.sendall(piece)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
