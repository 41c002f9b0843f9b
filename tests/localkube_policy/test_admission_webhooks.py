"""Admission webhooks, called over real TLS."""

from __future__ import annotations

import asyncio
import base64
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from localkube.apiserver import pki
from localkube.apiserver.authn import User
from localkube.apiserver.errors import ApiError
from localkube_policy.policy_world import ADMIN, World, crd, deployment, pod, widget
from localkube_policy.webhook_server import Decide, WebhookServer, json_patch

Object = dict[str, Any]
GROUP = "admissionregistration.k8s.io"
POD_RULES = [
    {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
]


def add_service(world: World, port: int, name: str = "hook", ready: bool = True) -> None:
    """A Service and its EndpointSlice on loopback."""
    metadata = {"name": name, "namespace": "default"}
    world.put("services", {"metadata": metadata, "spec": {"ports": [{"port": 443}]}})
    labels = {"kubernetes.io/service-name": name}
    world.put(
        "endpointslices",
        {
            "metadata": {"name": f"{name}-1", "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": port}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready}}],
        },
        "discovery.k8s.io",
    )


async def register(
    world: World, ca_bundle: str, kind: str = "Validating", name: str = "hook", **fields: Any
) -> None:
    """Create a webhook configuration through the policy, so that it is defaulted and checked."""
    client: Object = fields.pop(
        "clientConfig",
        {"service": {"name": "hook", "namespace": "default", "path": "/check"}},
    )
    await world.create(
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": f"{kind}WebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [
                {
                    "name": f"{name}.example.com",
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "rules": POD_RULES,
                    "clientConfig": {**client, "caBundle": ca_bundle},
                    **fields,
                }
            ],
        }
    )


@pytest.fixture
def serve(world: World, tmp_path: Path) -> Any:
    """Start a webhook behind Service default/hook."""

    def start(decide: Decide, *names: str) -> Any:
        class Running:
            async def __aenter__(self) -> WebhookServer:
                server = WebhookServer(tmp_path / "hook", decide)
                self.run = server.run(*(names or ("hook.default.svc",)))
                await self.run.__aenter__()
                add_service(world, server.port)
                return server

            async def __aexit__(self, *error: object) -> None:
                await self.run.__aexit__(*error)

        return Running()

    return start


async def test_mutating_webhook(world: World, serve: Any) -> None:
    """A JSON patch is applied, and what it adds is defaulted like a user's input."""
    added = {"name": "sidecar", "image": "proxy:1", "ports": [{"containerPort": 15001}]}

    def decide(request: Object) -> Object:
        assert request["operation"] == "CREATE"
        assert request["userInfo"]["username"] == "kubernetes-admin"
        return json_patch({"op": "add", "path": "/spec/containers/-", "value": added})

    async with serve(decide) as server:
        await register(world, server.ca_bundle, "Mutating")
        stored, _ = await world.create(pod())
    names = [container["name"] for container in stored["spec"]["containers"]]
    assert names == ["app", "sidecar"]
    sidecar = stored["spec"]["containers"][1]
    assert sidecar["ports"] == [{"containerPort": 15001, "protocol": "TCP"}]
    assert sidecar["imagePullPolicy"] == "IfNotPresent"
    request = server.seen[0]
    assert request["object"]["spec"]["serviceAccountName"] == "default"
    assert request["options"]["kind"] == "CreateOptions"
    assert request["resource"] == {"group": "", "version": "v1", "resource": "pods"}


async def test_validating_webhook_denies(world: World, serve: Any) -> None:
    """The denial carries the webhook's words and code, and warnings are passed on."""

    def decide(request: Object) -> Object:
        if request["object"]["metadata"]["name"] == "bad":
            status = {"code": 403, "reason": "Forbidden", "message": "no bad pods"}
            return {"allowed": False, "status": status}
        return {"allowed": True, "warnings": ["careful"]}

    async with serve(decide) as server:
        await register(world, server.ca_bundle)
        _, warnings = await world.create(pod("good"))
        assert warnings == ["careful"]
        with pytest.raises(ApiError) as caught:
            await world.create(pod("bad"))
    assert caught.value.message == (
        'admission webhook "hook.example.com" denied the request: no bad pods'
    )
    assert (caught.value.code, caught.value.reason) == (403, "Forbidden")


async def test_denial_without_words(world: World, serve: Any) -> None:
    """A bare refusal is a 400 without explanation, even if it claims code 200."""
    async with serve(lambda _: {"allowed": False, "status": {"code": 200}}) as server:
        await register(world, server.ca_bundle)
        with pytest.raises(ApiError, match="denied the request without explanation") as caught:
            await world.create(pod())
    assert caught.value.code == 400


async def test_unreachable_webhook_fails_the_request(world: World) -> None:
    """failurePolicy Fail: a refused connection is an error that names the webhook and the URL."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        port = silent.getsockname()[1]
        add_service(world, port)
        await register(world, "")
        with pytest.raises(ApiError) as caught:
            await world.create(pod())
    assert caught.value.code == 500
    assert caught.value.message == (
        'Internal error occurred: failed calling webhook "hook.example.com": failed to call '
        'webhook: Post "https://hook.default.svc:443/check?timeout=10s": dial tcp '
        f"127.0.0.1:{port}: connect: connection refused"
    )


async def test_unreachable_webhook_may_be_ignored(world: World) -> None:
    """failurePolicy Ignore: the request goes on."""
    await register(world, "", failurePolicy="Ignore")
    stored, _ = await world.create(pod())
    assert stored["metadata"]["name"] == "web"


@pytest.mark.parametrize(
    ("ready", "create", "text"),
    [
        (True, False, 'service "hook" not found'),
        (False, True, 'no endpoints available for service "hook"'),
    ],
)
async def test_missing_service(world: World, ready: bool, create: bool, text: str) -> None:
    if create:
        add_service(world, 1, ready=ready)
    await register(world, "")
    with pytest.raises(ApiError, match=text):
        await world.create(pod())


async def test_certificate_is_verified(world: World, serve: Any, tmp_path: Path) -> None:
    """Another authority, or another name, is not trusted."""
    other = pki.ensure_pki(tmp_path / "other").ca_pem()
    async with serve(lambda _: {"allowed": True}) as server:
        await register(world, base64.b64encode(other).decode(), name="a")
        with pytest.raises(ApiError, match="x509: certificate signed by unknown authority"):
            await world.create(pod())
        assert server.seen == []


async def test_certificate_name_is_verified(world: World, serve: Any) -> None:
    async with serve(lambda _: {"allowed": True}, "other.default.svc") as server:
        await register(world, server.ca_bundle)
        with pytest.raises(ApiError, match="tls: failed to verify certificate"):
            await world.create(pod())


async def test_timeout(world: World, serve: Any) -> None:
    """A webhook that does not answer within timeoutSeconds has failed."""
    never = asyncio.Event()

    async def decide(_: Object) -> Object:
        await never.wait()
        return {"allowed": True}

    async with serve(decide) as server:
        await register(world, server.ca_bundle, timeoutSeconds=1)
        with pytest.raises(ApiError, match="context deadline exceeded"):
            await world.create(pod())
        never.set()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda: web.Response(status=500, text="boom"), 'an error on the server \\("boom"\\)'),
        (lambda: web.Response(text="hello"), "couldn't get version/kind"),
        (lambda: web.json_response({}), "without `response`"),
        (
            lambda: web.json_response({"response": {"allowed": True}}),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview",
        ),
    ],
)
async def test_malformed_answers(world: World, serve: Any, answer: Any, text: str) -> None:
    """An answer that is not an AdmissionReview counts as a failure, not as a yes."""
    async with serve(lambda _: {"__answer__": answer()}) as server:
        await register(world, server.ca_bundle)
        with pytest.raises(ApiError, match=text):
            await world.create(pod())


async def test_url_webhook(world: World, tmp_path: Path) -> None:
    """clientConfig.url is called at that host and path."""
    async with WebhookServer(tmp_path, lambda _: {"allowed": True}).run() as server:
        url = {"url": f"https://localhost:{server.port}/x"}
        await register(world, server.ca_bundle, clientConfig=url)
        await world.create(pod())
        assert len(server.seen) == 1


async def test_selectors(world: World, serve: Any) -> None:
    """Only matching namespaces and objects are sent."""
    world.put("namespaces", {"metadata": {"name": "meshed", "labels": {"inject": "yes"}}})
    world.put("serviceaccounts", {"metadata": {"name": "default", "namespace": "meshed"}})
    async with serve(lambda _: {"allowed": True}) as server:
        await register(
            world,
            server.ca_bundle,
            namespaceSelector={"matchLabels": {"inject": "yes"}},
            objectSelector={"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]},
        )
        skipped = pod("c", "meshed")
        skipped["metadata"]["labels"] = {"skip": "1"}
        for obj in (pod("a"), pod("b", "meshed"), skipped):
            await world.create(obj)
        assert [request["name"] for request in server.seen] == ["b"]


async def test_rules_select_operations_and_subresources(world: World, serve: Any) -> None:
    """`pods/*` is pods and all their subresources; CREATE is not asked for here."""
    async with serve(lambda _: {"allowed": True}) as server:
        rules = [
            {
                "operations": ["UPDATE", "DELETE"],
                "apiGroups": ["*"],
                "apiVersions": ["*"],
                "resources": ["pods/*"],
            }
        ]
        await register(world, server.ca_bundle, rules=rules)
        stored, _ = await world.create(pod())
        changed = {"verb": "UPDATE", "old_object": stored}
        await world.policy.validate(world.operation(stored, **changed))
        await world.policy.validate(world.operation(stored, subresource="status", **changed))
        delete = world.operation(stored, verb="DELETE", object=None, old_object=stored)
        await world.policy.validate(delete)
        seen = [(r["operation"], r.get("subResource", "")) for r in server.seen]
        assert seen == [("UPDATE", ""), ("UPDATE", "status"), ("DELETE", "")]


async def test_match_conditions(world: World, serve: Any) -> None:
    """CEL conditions see the object and the request; one that fails follows failurePolicy."""
    conditions = [
        {"name": "not-admin", "expression": "request.userInfo.username != 'kubernetes-admin'"},
        {"name": "named", "expression": "object.metadata.name.startsWith('w')"},
    ]
    bob = User("bob", groups=("system:masters",))
    async with serve(lambda _: {"allowed": True}) as server:
        await register(world, server.ca_bundle, matchConditions=conditions)
        await world.create(pod("w1"), ADMIN)
        await world.create(pod("w2"), bob)
        await world.create(pod("x"), bob)
        assert [request["name"] for request in server.seen] == ["w2"]
        broken = [{"name": "b", "expression": "object.nothing.here == 1"}]
        await register(world, server.ca_bundle, name="other", matchConditions=broken)
        with pytest.raises(ApiError, match='matchCondition "b": no such key: nothing'):
            await world.create(pod("w3"), ADMIN)


async def test_reinvocation(world: World, serve: Any) -> None:
    """A webhook with IfNeeded runs again when a later one changed the object."""

    def decide(request: Object) -> Object:
        labels = request["object"]["metadata"].get("labels") or {}
        operations = []
        if not labels:
            operations.append({"op": "add", "path": "/metadata/labels", "value": {}})
        if request["object"]["spec"].get("hostname") is None and labels:
            operations.append({"op": "add", "path": "/spec/hostname", "value": "late"})
        key = f"n{len(labels)}"
        operations.append({"op": "add", "path": f"/metadata/labels/{key}", "value": "x"})
        return json_patch(*operations)

    async with serve(decide) as server:
        await register(world, server.ca_bundle, "Mutating", "a", reinvocationPolicy="IfNeeded")
        await register(world, server.ca_bundle, "Mutating", "b")
        stored, _ = await world.create(pod())
        assert len(server.seen) == 3
        assert stored["metadata"]["labels"] == {"n0": "x", "n1": "x", "n2": "x"}


async def test_webhooks_never_see_webhook_configurations(world: World, serve: Any) -> None:
    """A webhook that matches everything cannot stop its own removal."""
    everything = [
        {
            "operations": ["*"],
            "apiGroups": ["*"],
            "apiVersions": ["*"],
            "resources": ["*/*"],
        }
    ]
    async with serve(lambda _: {"allowed": False}) as server:
        await register(world, server.ca_bundle, rules=everything)
        await register(world, server.ca_bundle, name="second", rules=everything)
        assert server.seen == []
        with pytest.raises(ApiError, match="denied the request"):
            await world.create(deployment())


async def test_dry_run_is_told(world: World, serve: Any) -> None:
    async with serve(lambda _: {"allowed": True}) as server:
        await register(world, server.ca_bundle)
        await world.create(pod(), dry_run=True)
        assert server.seen[0]["dryRun"] is True


async def test_equivalent_version_is_converted(world: World, serve: Any) -> None:
    """A rule for v1beta1 sees a v1 request as v1beta1; Exact does not see it."""
    schema: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    definition = crd(schema)
    beta = {**definition["spec"]["versions"][0], "name": "v1beta1", "storage": False}
    definition["spec"]["versions"].append(beta)
    await world.create(definition)
    rules = [
        {
            "operations": ["CREATE"],
            "apiGroups": ["example.com"],
            "apiVersions": ["v1beta1"],
            "resources": ["widgets"],
        }
    ]

    def label(_: Object) -> Object:
        return json_patch({"op": "add", "path": "/metadata/labels", "value": {"a": "b"}})

    async with serve(label) as server:
        await register(world, server.ca_bundle, "Mutating", rules=rules)
        await register(
            world, server.ca_bundle, "Mutating", "exact", rules=rules, matchPolicy="Exact"
        )
        stored, _ = await world.create(widget())
        assert len(server.seen) == 1
        assert server.seen[0]["object"]["apiVersion"] == "example.com/v1beta1"
        assert server.seen[0]["requestKind"]["version"] == "v1"
        assert stored["apiVersion"] == "example.com/v1"
        assert stored["metadata"]["labels"] == {"a": "b"}


async def test_restarted_webhook_is_reached_again(world: World, tmp_path: Path) -> None:
    """A kept connection that the webhook's restart has closed is not a failure."""
    server = WebhookServer(tmp_path / "hook", lambda _: {"allowed": True})
    for name in ("a", "b"):
        async with server.run("hook.default.svc"):
            add_service(world, server.port)
            if name == "a":
                await register(world, server.ca_bundle)
            await world.create(pod(name))
    assert [request["name"] for request in server.seen] == ["a", "b"]


async def test_unreachable_endpoint_is_passed_over(world: World, serve: Any) -> None:
    """With one dead and one live endpoint every call succeeds."""
    async with serve(lambda _: {"allowed": True}) as server:
        piece = world.store.get("endpointslices.discovery.k8s.io", "default", "hook-1")
        assert piece is not None
        # Nothing listens on this other loopback address.
        endpoints = [{"addresses": ["127.0.0.1"]}, {"addresses": ["127.0.0.99"]}]
        changed = {**piece.object, "endpoints": endpoints}
        world.put("endpointslices", changed, "discovery.k8s.io")
        await register(world, server.ca_bundle)
        for number in range(4):
            await world.create(pod(f"p{number}"))
    assert len(server.seen) == 4
