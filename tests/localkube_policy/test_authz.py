"""What users may do."""

from __future__ import annotations

from typing import Any

import pytest

from localkube.apiserver.authn import ANONYMOUS, User
from localkube.apiserver.authz import Attributes, denial_message
from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import ADMIN, JANE, World, pod

RBAC = "rbac.authorization.k8s.io"
Rules = list[dict[str, Any]]


def rule(groups: str, resources: str, verbs: str, names: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiGroups": groups.split(",") if groups else [""],
        "resources": resources.split(","),
        "verbs": verbs.split(","),
    }
    return {**made, "resourceNames": names.split(",")} if names else made


def role(name: str, rules: Rules, namespace: str = "", **more: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role" if namespace else "ClusterRole",
        "metadata": {**metadata, **more.pop("metadata", {})},
        "rules": rules,
        **more,
    }


def binding(
    name: str, role_kind: str, role_name: str, subject: tuple[str, str], namespace: str = ""
) -> dict[str, Any]:
    kind, who = subject
    who_fields = {"kind": kind, "name": who}
    if kind == "ServiceAccount":
        who_fields["namespace"] = "default"
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role_name},
        "subjects": [who_fields],
    }


def grant(world: World, rules: Rules, namespace: str = "", who: str = "jane") -> None:
    """Give `who` these rules, in a namespace or everywhere."""
    world.put("clusterroles", role("granted", rules), RBAC)
    plural = "rolebindings" if namespace else "clusterrolebindings"
    world.put(plural, binding("granted", "ClusterRole", "granted", ("User", who), namespace), RBAC)


def allowed(world: World, user: User, verb: str, resource: str, **more: str) -> bool:
    plural, _, subresource = resource.partition("/")
    attributes = Attributes(
        verb,
        more.pop("group", ""),
        "v1",
        plural,
        subresource,
        **more,  # type: ignore[arg-type]
    )
    return world.policy.authorize(user, attributes).allowed


def test_masters_may_do_everything(world: World) -> None:
    assert allowed(world, ADMIN, "delete", "nodes", name="x")
    assert world.policy.authorize(ADMIN, Attributes("get", path="/metrics")).allowed


def test_nothing_is_allowed_by_default(world: World) -> None:
    assert not allowed(world, JANE, "get", "pods", namespace="default")


def test_role_binding_is_limited_to_its_namespace(world: World) -> None:
    grant(world, [rule("", "pods", "get,list")], namespace="default")
    assert allowed(world, JANE, "list", "pods", namespace="default")
    assert not allowed(world, JANE, "list", "pods", namespace="other")
    assert not allowed(world, JANE, "list", "pods")
    assert not allowed(world, JANE, "delete", "pods", namespace="default")


def test_subresources_are_separate(world: World) -> None:
    """`pods` does not include `pods/log`; `*/scale` includes every scale."""
    grant(world, [rule("", "pods", "get"), rule("apps", "*/scale", "update")])
    assert not allowed(world, JANE, "get", "pods/log", namespace="default")
    assert allowed(world, JANE, "update", "deployments/scale", group="apps", namespace="x")
    assert not allowed(world, JANE, "update", "deployments", group="apps", namespace="x")


def test_resource_names_limit_and_exclude_lists(world: World) -> None:
    grant(world, [rule("", "secrets", "get,list,watch", names="one")])
    assert allowed(world, JANE, "get", "secrets", namespace="default", name="one")
    assert not allowed(world, JANE, "get", "secrets", namespace="default", name="two")
    assert not allowed(world, JANE, "list", "secrets", namespace="default")


def test_a_change_takes_effect_at_once(world: World) -> None:
    """The index follows the store: rights come and go with their binding."""
    grant(world, [rule("", "pods", "get")])
    assert allowed(world, JANE, "get", "pods", namespace="default")
    world.remove("clusterrolebindings", "granted", group=RBAC)
    assert not allowed(world, JANE, "get", "pods", namespace="default")


def test_service_account_subject(world: World) -> None:
    world.put("roles", role("r", [rule("", "pods", "list")], "default"), RBAC)
    subject = ("ServiceAccount", "bot")
    world.put("rolebindings", binding("r", "Role", "r", subject, "default"), RBAC)
    bot = User("system:serviceaccount:default:bot", groups=("system:authenticated",))
    assert allowed(world, bot, "list", "pods", namespace="default")


def test_aggregation(world: World) -> None:
    """A role labelled for `view` gives its rules to view, edit and admin."""
    label = {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}
    extra = role("widgets-view", [rule("example.com", "widgets", "get")], metadata=label)
    world.put("clusterroles", extra, RBAC)
    for index, name in enumerate(("view", "edit", "admin")):
        who = User(f"user{index}")
        world.put(
            "clusterrolebindings", binding(name, "ClusterRole", name, ("User", who.name)), RBAC
        )
        assert allowed(world, who, "get", "widgets", group="example.com", namespace="default")
        assert allowed(world, who, "get", "pods", namespace="default")
    assert not allowed(world, User("user0"), "create", "pods", namespace="default")
    assert allowed(world, User("user1"), "create", "pods", namespace="default")
    assert allowed(world, User("user2"), "create", "roles", group=RBAC, namespace="default")
    assert not allowed(world, User("user0"), "get", "secrets", namespace="default")


def test_non_resource_urls(world: World) -> None:
    """Everyone may read the version; only the authenticated may discover."""

    def may(user: User, path: str) -> bool:
        return world.policy.authorize(user, Attributes("get", path=path)).allowed

    assert may(ANONYMOUS, "/healthz") and may(ANONYMOUS, "/version")
    assert may(JANE, "/apis/apps/v1") and not may(ANONYMOUS, "/apis/apps/v1")
    assert not may(JANE, "/metrics")


def test_denial_text() -> None:
    """The words that users know from kubectl."""
    listing = Attributes("list", "apps", "v1", "deployments", namespace="dev")
    assert denial_message(JANE, listing) == (
        'deployments.apps is forbidden: User "jane" cannot list resource "deployments" in API '
        'group "apps" in the namespace "dev"'
    )
    assert denial_message(JANE, Attributes("get", path="/metrics")) == (
        'forbidden: User "jane" cannot get path "/metrics"'
    )


def test_node_reads_only_what_its_pods_use(world: World) -> None:
    """A node gets the Secrets of its own pods, and writes only its own Node and pods."""
    node = User("system:node:n1", groups=("system:nodes", "system:authenticated"))
    volume = {"name": "s", "secret": {"secretName": "mine"}}
    world.put("pods", pod("a", nodeName="n1", volumes=[volume]))
    other = {"name": "s", "secret": {"secretName": "theirs"}}
    world.put("pods", pod("b", nodeName="n2", volumes=[other]))
    assert allowed(world, node, "get", "secrets", namespace="default", name="mine")
    assert not allowed(world, node, "get", "secrets", namespace="default", name="theirs")
    assert not allowed(world, node, "list", "secrets", namespace="default")
    assert allowed(world, node, "patch", "nodes/status", name="n1")
    assert not allowed(world, node, "patch", "nodes/status", name="n2")
    assert allowed(world, node, "patch", "pods/status", namespace="default", name="a")
    assert not allowed(world, node, "patch", "pods/status", namespace="default", name="b")
    assert allowed(world, node, "patch", "services/status", namespace="default", name="s")
    assert not allowed(world, node, "delete", "services", namespace="default", name="s")
    assert not allowed(world, node, "create", "clusterroles", group=RBAC)


async def test_no_one_grants_more_than_they_have(world: World) -> None:
    """Creating a role or binding with rights one lacks is refused, unless one may escalate."""
    grant(world, [rule("", "pods", "get"), rule(RBAC, "*", "create,update")])
    await world.create(role("small", [rule("", "pods", "get")], "default"), JANE)
    with pytest.raises(ApiError, match="attempting to grant RBAC permissions") as caught:
        await world.create(role("big", [rule("", "secrets", "get")], "default"), JANE)
    assert caught.value.code == 403
    assert '{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}' in caught.value.message
    admin = binding("b", "ClusterRole", "cluster-admin", ("User", "jane"))
    with pytest.raises(ApiError, match="attempting to grant"):
        await world.create(admin, JANE)
    await world.create(admin, ADMIN)
    await world.create(role("big", [rule("", "secrets", "get")], "default"), JANE)


async def test_access_reviews(world: World) -> None:
    """The review APIs answer as the authorizer decides."""
    grant(world, [rule("", "pods", "get")], namespace="default")

    async def review(kind: str, spec: dict[str, Any], user: User = JANE) -> dict[str, Any]:
        api = (
            "authentication.k8s.io/v1"
            if kind.startswith(("Token", "SelfSubjectReview"))
            else ("authorization.k8s.io/v1")
        )
        body = {"apiVersion": api, "kind": kind, "metadata": {}, "spec": spec}
        answered = await world.policy.review(world.resource(body), body, user, "default")
        status: dict[str, Any] = answered["status"]
        return status

    question = {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}}
    assert (await review("SelfSubjectAccessReview", question))["allowed"]
    assert not (await review("SelfSubjectAccessReview", question, User("x")))["allowed"]
    for_jane = {**question, "user": "jane"}
    assert (await review("SubjectAccessReview", for_jane, ADMIN))["allowed"]
    assert (await review("LocalSubjectAccessReview", for_jane, ADMIN))["allowed"]
    rules = await review("SelfSubjectRulesReview", {"namespace": "default"})
    assert {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]} in rules["resourceRules"]
    assert (await review("SelfSubjectReview", {}))["userInfo"]["username"] == "jane"
    with pytest.raises(ApiError) as caught:
        await review("SelfSubjectAccessReview", {})
    assert caught.value.code == 422


async def test_token_review(world: World) -> None:
    """A token is reviewed for the asked audience; a bad one is not an error of the request."""
    issued = world.policy.tokens.issue("default", "default", {"spec": {"audiences": ["istio-ca"]}})

    async def review(spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answered = await world.policy.review(world.resource(body), body, ADMIN, "")
        status: dict[str, Any] = answered["status"]
        return status

    token = issued["status"]["token"]
    good = await review({"token": token, "audiences": ["istio-ca"]})
    assert good["authenticated"] and good["audiences"] == ["istio-ca"]
    assert good["user"]["username"] == "system:serviceaccount:default:default"
    bad = await review({"token": token})
    assert "authenticated" not in bad and "audiences" in bad["error"]
