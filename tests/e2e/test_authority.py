"""The mesh's certificate authority, asked over gRPC as an agent does: who proves what gets which certificate."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from e2e.conftest import Shell
from meltemi.protos import ca_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
RATINGS = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"


def signing_request(*uris: str) -> str:
    """A CSR of a fresh key, in PEM, that asks for these names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=True)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


class AuthorityClient:
    """An agent's view of istiod:15012."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.call = channel.unary_unary(
            METHOD,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )

    def identities(self, token: str | None, *asked: str) -> list[str]:
        """Names in the certificate that this token gets; grpc.RpcError when it gets none."""
        metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        request = ca_pb2.IstioCertificateRequest(csr=signing_request(*asked))
        answer = self.call(request, metadata=metadata, timeout=10)
        certificate = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return names.value.get_values_for_type(x509.UniformResourceIdentifier)

    def refusal(self, token: str | None) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            self.identities(token, RATINGS)
        return refused.value


@pytest.fixture(scope="module")
def authority(mesh: Shell) -> Iterator[AuthorityClient]:
    root = mesh(
        r"kubectl get configmap -n bookinfo istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}'"
    )
    forward = subprocess.Popen(
        ["kubectl", "port-forward", "-n", "istio-system", "service/istiod", ":15012"],
        env=mesh.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert forward.stdout is not None
        port = forward.stdout.readline().split(":")[1].split(" ")[0]
        with grpc.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(root.encode()),
            [("grpc.ssl_target_name_override", "istiod.istio-system.svc")],
        ) as channel:
            yield AuthorityClient(channel)
    finally:
        forward.terminate()
        forward.wait()
        with contextlib.suppress(OSError):
            forward.stdout and forward.stdout.close()


def token(mesh: Shell, audience: str = "istio-ca") -> str:
    return mesh(f"kubectl create token -n bookinfo bookinfo-ratings --audience {audience}").strip()


def test_a_token_gets_a_certificate_for_its_service_account(
    mesh: Shell, authority: AuthorityClient
) -> None:
    assert authority.identities(token(mesh), RATINGS) == [RATINGS]


def test_a_request_for_another_identity_gets_the_proven_one(
    mesh: Shell, authority: AuthorityClient
) -> None:
    admin = "spiffe://cluster.local/ns/istio-system/sa/istiod"
    assert authority.identities(token(mesh), admin) == [RATINGS]
    assert authority.identities(token(mesh)) == [RATINGS]


def expired(mesh: Shell) -> str:
    """A token that was good until an hour ago, signed by the cluster's own key."""
    claims = jwt.decode(token(mesh), options={"verify_signature": False})
    now = int(time.time())
    claims |= {"iat": now - 7200, "nbf": now - 7200, "exp": now - 3600}
    key = Path(mesh.environment["LOCALKUBE_HOME"], "default", "pki", "sa.key").read_bytes()
    head = jwt.get_unverified_header(token(mesh))
    return jwt.encode(claims, key, algorithm=head["alg"], headers=head)


def forged(mesh: Shell) -> str:
    """A good token's claims, signed by somebody else."""
    good = token(mesh)
    claims = jwt.decode(good, options={"verify_signature": False})
    stranger = ec.generate_private_key(ec.SECP256R1())
    return jwt.encode(claims, stranger, algorithm="ES256", headers=jwt.get_unverified_header(good))


@pytest.mark.parametrize("kind", ["none", "garbage", "other audience", "expired", "forged"])
def test_a_wrong_token_gets_nothing_but_a_reason(
    mesh: Shell, authority: AuthorityClient, kind: str
) -> None:
    makers: dict[str, Callable[[Shell], str | None]] = {
        "none": lambda _: None,
        "garbage": lambda _: "not.a.token",
        "other audience": lambda shell: token(shell, "somebody-else"),
        "expired": expired,
        "forged": forged,
    }
    wrong = makers[kind](mesh)
    refused = authority.refusal(wrong)
    assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused.details()
    if wrong:
        assert wrong not in str(refused.details())
        assert wrong not in mesh("kubectl logs -n istio-system deployment/istiod --tail=200")
    assert authority.identities(token(mesh)) == [RATINGS], "others are served as before"
