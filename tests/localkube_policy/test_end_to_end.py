"""The policy behind the real API server, as kubectl sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from localkube.apiserver import pki
from localkube.apiserver.app import ServerConfig, serve
from localkube.apiserver.store import Store
from localkube_policy.policy_world import crd, deployment, pod, widget
from localkube_policy.webhook_server import WebhookServer, json_patch

Object = dict[str, Any]


def _kubectls() -> list[str]:
    """The kubectl beside this Python, and the one of the machine."""
    beside = Path(sys.executable).parent / "kubectl"
    found = [str(beside)] if beside.exists() else []
    system = next((p for p in ("/usr/bin/kubectl", shutil.which("kubectl")) if p), "")
    if system and Path(system).exists() and system not in found:
        found.append(system)
    return found


@dataclass
class Output:
    code: int
    out: str
    err: str


class Cluster:
    """A running API server and a kubectl for it."""

    def __init__(self, kubectl: str, kubeconfig: Path) -> None:
        self._kubectl = kubectl
        self._kubeconfig = kubeconfig

    async def kubectl(self, *arguments: str, body: Object | None = None) -> Output:
        environment = {
            **os.environ,
            "KUBECONFIG": str(self._kubeconfig),
            "HOME": str(self._kubeconfig.parent),  # where kubectl keeps its caches
        }
        process = await asyncio.create_subprocess_exec(
            self._kubectl,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        content = json.dumps(body).encode() if body is not None else None
        out, err = await process.communicate(content)
        return Output(process.returncode or 0, out.decode(), err.decode())

    async def apply(self, body: Object, *arguments: str) -> Output:
        return await self.kubectl("apply", "-f", "-", *arguments, body=body)

    async def must(self, *arguments: str, body: Object | None = None) -> str:
        """Standard output of a command that has to succeed."""
        result = await self.kubectl(*arguments, body=body)
        assert result.code == 0, result.err
        return result.out


@pytest_asyncio.fixture(params=_kubectls() or [pytest.param("", marks=pytest.mark.skip)])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster without controllers or node, once for each kubectl there is."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = f"https://127.0.0.1:{sock.getsockname()[1]}"
    keys = pki.ensure_pki(tmp_path / "pki")
    kubeconfig = tmp_path / "kubeconfig"
    pki.write_kubeconfig(kubeconfig, keys, keys.admin, server=server, cluster="test")
    store = Store(None)
    serving = asyncio.ensure_future(serve(store, ServerConfig(pki_dir=tmp_path / "pki"), [sock]))
    made = Cluster(request.param, kubeconfig)
    # No service account controller runs here.
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    try:
        await made.must("apply", "-f", "-", body=account)
        yield made
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        store.close()
        sock.close()


async def test_typo_is_refused_by_the_server(cluster: Cluster) -> None:
    """kubectl leaves the check to the server, which names the field."""
    result = await cluster.apply(deployment(replica=1))
    assert result.code == 1
    assert 'strict decoding error: unknown field "spec.replica"' in result.err
    result = await cluster.apply(deployment(replica=1), "--validate=warn")
    assert result.code == 0
    assert 'Warning: unknown field "spec.replica"' in result.err
    result = await cluster.apply(deployment(replicas=-1))
    assert 'The Deployment "web" is invalid: spec.replicas: Invalid value: -1' in result.err


async def test_explain(cluster: Cluster) -> None:
    """Built-in and custom kinds explain themselves."""
    assert "PodTemplateSpec" in await cluster.must("explain", "deployment.spec.template")
    schema: Object = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "description": "What the widget shall be.",
                "required": ["size"],
                "properties": {"size": {"type": "integer", "maximum": 3}},
            }
        },
    }
    await cluster.must("create", "-f", "-", body=crd(schema))
    await cluster.must("wait", "--for=condition=Established", "crd/widgets.example.com")
    explained = await cluster.must("explain", "widget.spec")
    assert "What the widget shall be." in explained and "-required-" in explained
    result = await cluster.apply(widget(spec={"size": 4}))
    assert (
        'The Widget "w" is invalid: spec.size: Invalid value: 4: spec.size in body should be less '
        "than or equal to 3"
    ) in result.err
    await cluster.must("apply", "-f", "-", body=widget(spec={"size": 3}))


async def test_rights(cluster: Cluster) -> None:
    """Tokens, impersonation, can-i and the text of a denial."""
    token = await cluster.must("create", "token", "default")
    assert token.count(".") == 2
    denied = await cluster.kubectl("auth", "can-i", "get", "pods", "--as", "jane")
    assert (denied.code, denied.out.strip()) == (1, "no")
    await cluster.must("create", "rolebinding", "v", "--clusterrole=view", "--group=dev")
    as_dev = ("--as", "jane", "--as-group", "dev")
    assert (await cluster.must("auth", "can-i", "get", "pods", *as_dev)).strip() == "yes"
    listed = await cluster.must("auth", "can-i", "--list", *as_dev)
    assert "configmaps" in listed
    result = await cluster.kubectl("get", "secrets", *as_dev)
    assert result.code == 1
    assert (
        'Error from server (Forbidden): secrets is forbidden: User "jane" cannot list resource '
        '"secrets" in API group "" in the namespace "default"'
    ) in result.err
    who = await cluster.must("auth", "whoami", "-o", "json", *as_dev)
    assert json.loads(who)["status"]["userInfo"]["groups"] == ["dev", "system:authenticated"]


def _service_objects(port: int) -> list[Object]:
    labels = {"kubernetes.io/service-name": "hook"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "hook"},
            "spec": {"ports": [{"port": 443}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "hook-1", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"port": port}],
            "endpoints": [{"addresses": ["127.0.0.1"]}],
        },
    ]


def _configuration(kind: str, ca_bundle: str, policy: str = "Fail") -> Object:
    service = {"name": "hook", "namespace": "default", "path": f"/{kind.lower()}"}
    rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": f"{kind}WebhookConfiguration",
        "metadata": {"name": "hook"},
        "webhooks": [
            {
                "name": f"{kind.lower()}.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": policy,
                "clientConfig": {"service": service, "caBundle": ca_bundle},
                "rules": [{**rule, "resources": ["pods"]}],
            }
        ],
    }


async def test_webhooks(cluster: Cluster, tmp_path: Path) -> None:
    """One webhook changes pods, another refuses some; without them failurePolicy decides."""
    kinds: list[str] = []

    def decide(request: Object) -> Object:
        labels = request["object"]["metadata"].get("labels") or {}
        kinds.append(request["name"])
        if labels.get("bad"):
            return {"allowed": False, "status": {"message": "bad pods are not wanted"}}
        if "touched" in labels:
            return {"allowed": True, "warnings": ["seen"]}
        return json_patch({"op": "add", "path": "/metadata/labels", "value": {"touched": "yes"}})

    async with WebhookServer(tmp_path / "hook", decide).run("hook.default.svc") as server:
        for obj in _service_objects(server.port):
            await cluster.must("apply", "-f", "-", body=obj)
        for kind in ("Mutating", "Validating"):
            await cluster.must("apply", "-f", "-", body=_configuration(kind, server.ca_bundle))
        result = await cluster.apply(pod("good"))
        assert result.code == 0 and "Warning: seen" in result.err
        shown = json.loads(await cluster.must("get", "pod", "good", "-o", "json"))
        assert shown["metadata"]["labels"] == {"touched": "yes"}
        bad = pod("bad")
        bad["metadata"]["labels"] = {"bad": "1", "touched": "yes"}
        result = await cluster.apply(bad)
        assert (
            'admission webhook "mutating.example.com" denied the request: bad pods are not wanted'
        ) in result.err
        bundle = server.ca_bundle
    result = await cluster.apply(pod("late"))
    assert result.code == 1
    assert 'failed calling webhook "mutating.example.com": failed to call webhook' in result.err
    assert "connect: connection refused" in result.err
    for kind in ("Mutating", "Validating"):
        await cluster.must("apply", "-f", "-", body=_configuration(kind, bundle, "Ignore"))
    await cluster.must("apply", "-f", "-", body=pod("late"))
