"""Ask istiod's certificate authority for a certificate.

In: ``CertificateRequest``. Out: ``CertificateAnswer`` with a new key. Promises: the answer's certificate
belongs to the key and names the identity that was asked for; the key never leaves the process but in the
answer. Imported only by the short-lived child of ``adapters.agent_csr``.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meltemi.adapters.agent_channel import RequestError, open_channel
from meltemi.adapters.agent_csr import CertificateAnswer, CertificateRequest
from meltemi.agent.secrets import SecretText
from meltemi.model.names import parse_spiffe
from meltemi.protos import ca_pb2

_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_CURVES = {"P256": ec.SECP256R1, "P384": ec.SECP384R1}
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def ask(request: CertificateRequest) -> CertificateAnswer:
    """The answer of istiod, or the reason why there is none."""
    try:
        key = _make_key(request.rsa_bits, request.curve)
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


def _make_key(rsa_bits: int, curve: str) -> PrivateKey:
    """On a curve unless WORKLOAD_RSA_KEY_SIZE asks for RSA: a handshake costs a tenth, the key is made at once."""
    if rsa_bits:
        if rsa_bits < 2048:
            raise RequestError(f"WORKLOAD_RSA_KEY_SIZE is {rsa_bits}; 2048 is the least")
        return rsa.generate_private_key(public_exponent=65537, key_size=rsa_bits)
    return ec.generate_private_key(_CURVES[curve]())


def _make_csr(key: PrivateKey, identity: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)


def _call(request: CertificateRequest, csr: bytes) -> list[str]:
    with open_channel(request) as (channel, metadata):
        create = channel.unary_unary(
            _METHOD,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        message = ca_pb2.IstioCertificateRequest(csr=csr.decode(), validity_duration=request.ttl_s)
        if request.proxy:
            hints = {"MeshProxy": request.proxy, "MeshTrusts": _trusted(request.trusted)}
            message.metadata.update(hints)
        answer = create(message, timeout=request.deadline_s, metadata=metadata)
    return list(answer.cert_chain)


def _trusted(pem: str) -> str:
    """Short names of these roots: the first 64 bits of each one's SHA-256."""
    try:
        roots = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return ""
    return ",".join(root.fingerprint(hashes.SHA256()).hex()[:16] for root in roots)


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
