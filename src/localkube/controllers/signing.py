"""Sign CertificateSigningRequests that somebody approved, for one signer: ``localkube.dev/workloads``.

In: CertificateSigningRequests of that signer. Out: ``status.certificate`` (the certificate and its root), or condition ``Failed``.
The authority is the signer's own, kept in a Secret of kube-system: nothing that it signs is known to the API server as a user.
Approval is the requester's affair, as in any cluster. Only the key, the names, the usages and the lifetime of a request are taken
over; a certificate never signs others. Rules: https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/
"""

import base64
import binascii
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localkube.client import ApiStatusError
from localkube.client.resources import CERTIFICATE_SIGNING_REQUESTS, SECRETS
from localkube.controllers.actions import Plan
from localkube.controllers.cache import Cache
from localkube.controllers.loop import Controller
from localkube.kit import clock

Object = dict[str, Any]
SIGNER: Final = "localkube.dev/workloads"
NAMESPACE: Final = "kube-system"
SECRET: Final = "localkube-signer"  # noqa: S105 - a Secret's name
_LIFETIME: Final = timedelta(days=365)
_ROOT_LIFETIME: Final = timedelta(days=3650)
_SKEW: Final = timedelta(minutes=5)
_EXTENDED: Final = {
    "server auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}


class Refused(Exception):
    """The request cannot be signed; the text says why."""


def is_waiting(request: Object) -> bool:
    """Whether it is for this signer, approved, and has no answer yet."""
    status = request.get("status") or {}
    kinds = {entry.get("type") for entry in status.get("conditions") or []}
    return (
        request["spec"].get("signerName") == SIGNER
        and "Approved" in kinds
        and not kinds & {"Denied", "Failed"}
        and not status.get("certificate")
    )


def make_root(now: datetime) -> tuple[str, str]:
    """(certificate, key) of a new authority, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SIGNER)])
    made = (
        _builder(name, name, now, _ROOT_LIFETIME)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM).decode(), text.decode()


def sign(request: Object, root_pem: str, key_pem: str, now: datetime) -> str:
    """The certificate and the root in PEM. Raises Refused."""
    spec = request["spec"]
    try:
        csr = x509.load_pem_x509_csr(base64.b64decode(spec["request"], validate=True))
        key, valid = csr.public_key(), csr.is_signature_valid
    except (KeyError, ValueError, TypeError, binascii.Error) as error:
        raise Refused(f"spec.request is no signing request: {error}") from None
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise Refused("the request is not signed with its own RSA or elliptic curve key")
    usages = [_EXTENDED[name] for name in spec.get("usages") or [] if name in _EXTENDED]
    if not usages:
        raise Refused("spec.usages holds neither server auth nor client auth")
    root = x509.load_pem_x509_certificate(root_pem.encode())
    signer = serialization.load_pem_private_key(key_pem.encode(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    seconds = spec.get("expirationSeconds")
    life = timedelta(seconds=seconds) if isinstance(seconds, int) else _LIFETIME
    made = (
        _builder(csr.subject, root.subject, now, min(life, _LIFETIME))
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        made = made.add_extension(names.value, critical=names.critical)
    except x509.ExtensionNotFound:
        pass
    except ValueError as error:
        raise Refused(f"spec.request has unreadable extensions: {error}") from None
    leaf = made.sign(signer, hashes.SHA256())
    return leaf.public_bytes(serialization.Encoding.PEM).decode() + root_pem


def _builder(
    subject: x509.Name, issuer: x509.Name, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


class SigningController(Controller):
    """See the module's docstring."""

    name = "signing"
    resource = CERTIFICATE_SIGNING_REQUESTS

    def watch(self, cache: Cache) -> None:
        """All requests; others' are left alone."""
        cache.of(CERTIFICATE_SIGNING_REQUESTS).on_change(self.enqueue)

    def plan(self, key: str) -> Plan | None:
        """None: what signing needs is read when it is done."""
        return None

    async def reconcile(self, key: str) -> float | None:
        """Answer one request."""
        request = self.cache.of(CERTIFICATE_SIGNING_REQUESTS).by_key(key)
        if request is None or not is_waiting(request):
            return None
        client, now = self.executor.client, clock.now()
        status = {**(request.get("status") or {})}
        try:
            chain = sign(request, *await self._authority(now), now)
            status["certificate"] = base64.b64encode(chain.encode()).decode()
        except Refused as refused:
            moment = clock.rfc3339(now)
            failed = {
                "type": "Failed",
                "status": "True",
                "reason": "SigningRefused",
                "message": str(refused),
                "lastUpdateTime": moment,
                "lastTransitionTime": moment,
            }
            status["conditions"] = [*(status.get("conditions") or []), failed]
        try:
            await client.update_status(CERTIFICATE_SIGNING_REQUESTS, {**request, "status": status})
        except ApiStatusError as error:
            if error.not_found or error.conflict:
                return None  # gone, or its change is on its way here
            raise
        return None

    async def _authority(self, now: datetime) -> tuple[str, str]:
        """The signer's certificate and key; made the first time."""
        client = self.executor.client
        try:
            secret = await client.get(SECRETS, SECRET, namespace=NAMESPACE)
        except ApiStatusError as error:
            if not error.not_found:
                raise
            cert, key = make_root(now)
            body = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": SECRET, "namespace": NAMESPACE},
                "stringData": {"tls.crt": cert, "tls.key": key},
            }
            secret = await client.create(SECRETS, body, namespace=NAMESPACE)
        cert, key = (
            base64.b64decode(secret["data"][name]).decode() for name in ("tls.crt", "tls.key")
        )
        return cert, key
