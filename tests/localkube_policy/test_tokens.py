"""Service account tokens."""

from __future__ import annotations

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from localkube.apiserver import tokens
from localkube.apiserver.admission_contract import StoreReader
from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import World, pod


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(world: World, clock: Clock) -> tokens.TokenAuthority:
    return tokens.TokenAuthority(world.key, StoreReader(world.store), clock=clock)


def issue(authority: tokens.TokenAuthority, **spec: object) -> str:
    return str(authority.issue("default", "default", {"spec": spec})["status"]["token"])


def test_token_round_trip(authority: tokens.TokenAuthority) -> None:
    """An issued token identifies its account until it expires."""
    verified = authority.verify(issue(authority))
    assert (verified.namespace, verified.name) == ("default", "default")


def test_token_expires(authority: tokens.TokenAuthority, clock: Clock) -> None:
    """Past its life a token is refused, although its signature is remembered."""
    token = issue(authority, expirationSeconds=600)
    authority.verify(token)
    clock.now += 601
    with pytest.raises(tokens.InvalidTokenError, match="expired"):
        authority.verify(token)


def test_audience_must_match(authority: tokens.TokenAuthority) -> None:
    """A token for another audience does not open the API server, and the other way round."""
    token = issue(authority, audiences=["istio-ca"])
    with pytest.raises(tokens.InvalidTokenError, match="audiences"):
        authority.verify(token)
    assert authority.verify(token, ["istio-ca", "x"]).audiences == ("istio-ca",)


def test_token_dies_with_its_pod(world: World, authority: tokens.TokenAuthority) -> None:
    """A bound token is void when its pod is deleted or replaced by one of the same name."""
    bound = world.put("pods", pod(serviceAccountName="default", nodeName="n1"))
    ref = {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": bound["metadata"]["uid"]}
    token = issue(authority, boundObjectRef=ref)
    extra = authority.verify(token).extra
    assert extra["authentication.kubernetes.io/pod-name"] == ["web"]
    assert extra["authentication.kubernetes.io/node-name"] == ["n1"]
    world.remove("pods", "web", "default")
    with pytest.raises(tokens.InvalidTokenError, match="Pod is gone"):
        authority.verify(token)
    world.put("pods", pod())
    with pytest.raises(tokens.InvalidTokenError, match="recreated"):
        authority.verify(token)


def test_token_dies_with_its_account(world: World, authority: tokens.TokenAuthority) -> None:
    """A recreated account has another uid, so old tokens stay void."""
    token = issue(authority)
    world.remove("serviceaccounts", "default", "default")
    with pytest.raises(tokens.InvalidTokenError, match="service account is gone"):
        authority.verify(token)
    world.put("serviceaccounts", {"metadata": {"name": "default", "namespace": "default"}})
    with pytest.raises(tokens.InvalidTokenError, match="recreated"):
        authority.verify(token)


def test_pod_of_another_account_cannot_be_bound(
    world: World, authority: tokens.TokenAuthority
) -> None:
    """A token binds only to pods that run as its account."""
    world.put("pods", pod(serviceAccountName="other"))
    with pytest.raises(ApiError, match="different serviceaccount name") as caught:
        issue(authority, boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "web"})
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ({"expirationSeconds": 10}, 422, "less than 10 minutes"),
        ({"expirationSeconds": "x"}, 422, "type integer"),
        ({"boundObjectRef": {"kind": "Pod", "name": "absent"}}, 404, "not found"),
        ({"boundObjectRef": {"kind": "Job", "name": "x"}}, 400, "cannot bind token"),
    ],
)
def test_bad_requests(
    authority: tokens.TokenAuthority, spec: dict[str, object], code: int, text: str
) -> None:
    """A request that makes no sense is refused with its reason."""
    with pytest.raises(ApiError, match=text) as caught:
        issue(authority, **spec)
    assert caught.value.code == code


def test_foreign_and_tampered_tokens_are_refused(
    world: World, authority: tokens.TokenAuthority
) -> None:
    """Only this cluster's key signs; `alg: none` and other keys are worth nothing."""
    token = issue(authority)
    claims = jwt.decode(token, options={"verify_signature": False})
    other = ec.generate_private_key(ec.SECP256R1())
    for forged in (
        jwt.encode(claims, other, algorithm="ES256"),
        jwt.encode(claims, None, algorithm="none"),
        token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB"),
        "not.a.token",
    ):
        with pytest.raises(tokens.InvalidTokenError):
            authority.verify(forged)


def test_projected_tokens_live_longer_than_asked(
    world: World, authority: tokens.TokenAuthority, clock: Clock
) -> None:
    """The 3607-second token of a pod works for clients that never reload it."""
    world.put("pods", pod(serviceAccountName="default"))
    ref = {"kind": "Pod", "apiVersion": "v1", "name": "web"}
    token = issue(authority, boundObjectRef=ref, expirationSeconds=3607)
    clock.now += 30 * 24 * 3600
    authority.verify(token)


def test_published_keys_verify_tokens(authority: tokens.TokenAuthority) -> None:
    """What /openid/v1/jwks serves is enough for another party to check a token."""
    token = issue(authority, audiences=["x"])
    keys = jwt.PyJWKSet.from_dict(authority.jwks())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="x", options=options)
    configuration = authority.openid_configuration("https://x/openid/v1/jwks")
    assert claims["iss"] == configuration["issuer"]
