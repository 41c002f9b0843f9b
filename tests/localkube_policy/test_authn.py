"""Who sent a request."""

from __future__ import annotations

import base64

import pytest
from multidict import CIMultiDict

from localkube.apiserver import authn
from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import ADMIN, JANE, World


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_certificate_names_user_and_groups() -> None:
    """CN is the user, each O a group."""
    subject = ((("organizationName", "a"),), (("organizationName", "b"),), (("commonName", "u"),))
    user = authn.user_of_certificate({"subject": subject})
    assert user == authn.User("u", groups=("a", "b", "system:authenticated"))


def test_service_account_token(world: World) -> None:
    """A token's user has the account's groups and carries the credential's id."""
    token = world.policy.tokens.issue("default", "default", {})["status"]["token"]
    user = world.policy.authenticator.user_of_token(token)
    assert user.name == "system:serviceaccount:default:default"
    assert "system:serviceaccounts:default" in user.groups
    assert user.extra["authentication.kubernetes.io/credential-id"][0].startswith("JTI=")


def test_wrong_token_is_401_not_anonymous(world: World) -> None:
    """A bad credential never degrades to an anonymous request."""
    with pytest.raises(ApiError) as caught:
        world.policy.authenticator.user_of_token("abc")
    assert (caught.value.code, caught.value.message) == (401, "Unauthorized")


def test_bootstrap_token(world: World) -> None:
    """A bootstrap token works with its secret, and not with another."""
    values = {
        "token-id": "abcdef",
        "token-secret": "0123456789abcdef",
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": "system:bootstrappers:join",
    }
    world.put(
        "secrets",
        {
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {key: b64(value) for key, value in values.items()},
        },
    )
    user = world.policy.authenticator.user_of_token("abcdef.0123456789abcdef")
    assert user.name == "system:bootstrap:abcdef"
    assert "system:bootstrappers:join" in user.groups
    with pytest.raises(ApiError):
        world.policy.authenticator.user_of_token("abcdef.wrong")


def test_bearer_token_of_headers() -> None:
    """The scheme's case does not matter; other schemes are not tokens."""
    assert authn.bearer_token({"Authorization": "bearer x"}) == "x"
    assert authn.bearer_token({"Authorization": "Basic x"}) is None
    encoded = base64.urlsafe_b64encode(b"x.y").rstrip(b"=").decode()
    protocol = f"base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io"
    assert authn.bearer_token({"Sec-WebSocket-Protocol": protocol}) == "x.y"


def test_admin_may_impersonate(world: World) -> None:
    """Groups are those asked for, and every authenticated user's."""
    headers = CIMultiDict(
        [("Impersonate-User", "bob"), ("Impersonate-Group", "dev"), ("Impersonate-Group", "ops")]
    )
    headers.add("Impersonate-Extra-Scopes", "view")
    user = world.policy.authenticator.impersonate(ADMIN, headers)
    assert user == authn.User(
        "bob", groups=("dev", "ops", "system:authenticated"), extra={"scopes": ["view"]}
    )


def test_impersonated_service_account_gets_its_groups(world: World) -> None:
    headers = CIMultiDict({"Impersonate-User": "system:serviceaccount:default:x"})
    user = world.policy.authenticator.impersonate(ADMIN, headers)
    assert "system:serviceaccounts:default" in user.groups


def test_others_may_not_impersonate(world: World) -> None:
    """Without the right to impersonate, the headers are a 403."""
    headers = CIMultiDict({"Impersonate-User": "kubernetes-admin"})
    with pytest.raises(ApiError) as caught:
        world.policy.authenticator.impersonate(JANE, headers)
    assert caught.value.code == 403
    assert caught.value.message == (
        'users "kubernetes-admin" is forbidden: User "jane" cannot impersonate resource "users" in '
        'API group "" at the cluster scope'
    )


def test_impersonating_only_a_group_is_a_mistake(world: World) -> None:
    headers = CIMultiDict({"Impersonate-Group": "system:masters"})
    with pytest.raises(ApiError) as caught:
        world.policy.authenticator.impersonate(ADMIN, headers)
    assert caught.value.code == 400
