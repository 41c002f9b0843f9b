"""The authority's Secret, the root in every namespace, the webhooks' caBundle: against a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from cryptography import x509

from ca.making import Made
from ca.making import files as bundle_files
from istiod.kube_server import KubeServer
from istiod.waiting import until
from meltemi.adapters.ca_store import AuthorityStore, Making, ServingCertificate, serving_names
from meltemi.adapters.kube_api import KubeApi
from meltemi.adapters.kube_connection import Connection
from meltemi.adapters.kube_publish import RootPublisher, WebhookPatcher
from meltemi.adapters.kube_watch import Collection, Watcher, WatchSession
from meltemi.adapters.metrics import Metrics
from meltemi.ca import authority, secrets
from meltemi.kit.clock import ManualClock, SystemClock
from meltemi.kit.tasks import Tasks
from meltemi.model import kubernetes

SECRETS = "/api/v1/secrets"
MAPS = "/api/v1/configmaps"
NAMESPACES = "/api/v1/namespaces"
HOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
NOWHERE = Path("/nonexistent/cacerts")


@pytest.fixture
async def server() -> AsyncIterator[KubeServer]:
    server = await KubeServer().start()
    for collection in (SECRETS, MAPS, NAMESPACES, HOOKS):
        server.serve(collection)
    yield server
    await server.stop()


@pytest.fixture
async def api(server: KubeServer) -> AsyncIterator[KubeApi]:
    async with KubeApi(Connection(server.url), "istiod") as api:
        yield api


def store(api: KubeApi | None, folder: Path = NOWHERE) -> AuthorityStore:
    return AuthorityStore(SystemClock(), "cluster.local", "istio-system", api, folder)


async def test_replicas_agree_on_one_root(server: KubeServer, api: KubeApi) -> None:
    """Of several that start at once, one makes the root; a later one reads it."""
    stores = [store(api) for _ in range(3)]
    await asyncio.gather(*(s.start() for s in stores))
    late = store(api)
    await late.start()
    held = [s.current() for s in (*stores, late)]
    assert len({h.roots for h in held if h}) == 1
    kept = server.objects[SECRETS]["istio-system", "istio-ca-secret"]
    assert base64.b64decode(kept["data"]["root-cert.pem"]).decode() == late.current().roots  # type: ignore[union-attr]


async def test_a_deleted_secret_is_written_again(server: KubeServer, api: KubeApi) -> None:
    """With the same root: certificates already issued stay valid."""
    one = store(api)
    await one.start()
    before = one.current()
    await server.remove(SECRETS, "istio-system", "istio-ca-secret")
    await one.refresh()
    assert ("istio-system", "istio-ca-secret") in server.objects[SECRETS]
    assert one.current() == before


async def test_a_plugged_authority_comes_first(api: KubeApi, tmp_path: Path) -> None:
    """Files in the cacerts folder win over any Secret."""
    own = store(None)
    await own.start()
    held = own.current()
    assert held is not None
    (tmp_path / "ca-cert.pem").write_text(authority.certificate_pem(held))
    (tmp_path / "ca-key.pem").write_text(authority.key_pem(held.key))
    plugged = store(api, tmp_path)
    await plugged.start()
    assert plugged.plugged
    assert plugged.current().roots == held.roots  # type: ignore[union-attr]


async def test_an_unreadable_secret_is_not_overwritten(server: KubeServer, api: KubeApi) -> None:
    """Somebody's broken key may be the only copy of a good one."""
    bad = {
        "metadata": {"name": "istio-ca-secret", "namespace": "istio-system"},
        "data": {"ca-cert.pem": "bm90IGEgY2VydA==", "ca-key.pem": "eA=="},
    }
    await server.put(SECRETS, bad)
    waiting = store(api)
    async with Tasks("test") as tasks:
        tasks.spawn("start", waiting.start)
        await until(lambda: sum(p.endswith("istio-ca-secret") for _, p, _ in server.requests) > 1)
        assert waiting.current() is None
        assert server.objects[SECRETS]["istio-system", "istio-ca-secret"]["data"] == bad["data"]


async def test_start_waits_for_the_api_server(server: KubeServer, api: KubeApi) -> None:
    """An API server that refuses at first is asked again."""
    server.refuse = lambda request: web.json_response({"message": "starting"}, status=500)
    waiting = store(api)
    async with Tasks("test") as tasks:
        tasks.spawn("start", waiting.start)
        await until(lambda: len(server.requests) > 1)
        server.refuse = lambda request: None
        await until(waiting.current)


@pytest.mark.parametrize("secret", ["istio-ca-secret", "cacerts"])
async def test_a_root_is_renewed_in_time_by_one_replica(
    server: KubeServer, api: KubeApi, tmp_path: Path, secret: str
) -> None:
    """With its key, in the Secret, for all; what replicas trust never jumps, nor do they take the mount of it for another's."""
    clock = ManualClock()
    making = Making(ttl_s=1000.0, grace_percentile=30, secret=secret)
    made = [
        AuthorityStore(clock, "cluster.local", "istio-system", api, tmp_path, making)
        for _ in range(2)
    ]
    for each in made:
        await each.start()
    before = made[0].current()
    assert before is not None
    if secret == "cacerts":  # as the kubelet does
        for name, text in secrets.files_of(before).items():
            (tmp_path / name).write_text(text)
    for age_s, renewed in ((100, False), (650, True)):
        clock.advance(age_s)
        await asyncio.gather(*(each.renew() for each in made))
        await asyncio.gather(*(each.refresh() for each in made))
        held = [each.current() for each in made]
        assert held[0] == held[1] or held[0].roots == held[1].roots  # type: ignore[union-attr]
        assert (held[0].roots != before.roots) is renewed  # type: ignore[union-attr]
        assert held[0].certificate.public_key() == before.certificate.public_key()  # type: ignore[union-attr]
    assert [name for _, name in server.objects[SECRETS]] == [secret]
    assert not any(each.plugged for each in made)
    kept = server.objects[SECRETS]["istio-system", secret]["data"]
    assert base64.b64decode(kept["root-cert.pem"]).decode() == held[0].roots  # type: ignore[union-attr]


async def test_serving_certificate_renews_at_half_life() -> None:
    """The names are those that proxies verify; the certificate changes before it ends."""
    clock = ManualClock()
    held = AuthorityStore(clock, "cluster.local", "istio-system", None, NOWHERE)
    serving = ServingCertificate(
        held,
        clock,
        serving_names("istio-system", "canary"),
        "spiffe://cluster.local/ns/istio-system/sa/istiod",
    )
    await held.start()
    first = serving.current()
    leaf = x509.load_pem_x509_certificate(first.chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    assert {
        "istiod.istio-system.svc",
        "istiod-canary.istio-system.svc",
        "istio-pilot.istio-system.svc",
    } <= set(dns)
    clock.advance(11 * 3600)
    assert serving.current() is first
    clock.advance(2 * 3600)
    assert serving.current().chain != first.chain


async def test_root_reaches_every_namespace_and_is_repaired(
    server: KubeServer, api: KubeApi
) -> None:
    """Existing and new namespaces; changed and deleted ConfigMaps; not the system's own namespaces."""
    roots = ["ROOT-1"]
    publisher = RootPublisher(api, lambda: {secrets.ROOT_KEY: roots[0]})
    for name in ("default", "kube-system"):
        await server.put(NAMESPACES, {"metadata": {"name": name}})

    def held(namespace: str) -> str | None:
        found = server.objects[MAPS].get((namespace, secrets.ROOT_CONFIG_MAP))
        return found["data"][secrets.ROOT_KEY] if found else None

    async with WatchSession(Connection(server.url)) as session, Tasks("test") as tasks:
        namespaces: Watcher[Any] = Watcher(
            session, Collection(NAMESPACES), kubernetes.decode_namespace, publisher.namespaces
        )
        maps: Watcher[Any] = Watcher(
            session,
            Collection(MAPS, field_selector=f"metadata.name={secrets.ROOT_CONFIG_MAP}"),
            kubernetes.decode_config_map,
            publisher.config_maps,
        )
        tasks.spawn("namespaces", namespaces.run)
        tasks.spawn("maps", maps.run)
        await until(lambda: namespaces.synced.is_set() and maps.synced.is_set())
        tasks.spawn("publish", publisher.run)
        await until(lambda: held("default") == "ROOT-1")
        await server.put(NAMESPACES, {"metadata": {"name": "bookinfo"}})
        await until(lambda: held("bookinfo") == "ROOT-1")
        await server.put(
            MAPS, {**secrets.root_config_map("default", {secrets.ROOT_KEY: "tampered"})}
        )
        await until(lambda: held("default") == "ROOT-1")
        await server.remove(MAPS, "default", secrets.ROOT_CONFIG_MAP)
        await until(lambda: held("default") == "ROOT-1")
        roots[0] = "ROOT-2"
        publisher.all_changed()
        await until(lambda: held("default") == held("bookinfo") == "ROOT-2")
        assert held("kube-system") is None


async def test_ca_bundle_is_patched_for_our_service_only(api: KubeApi) -> None:
    """Other people's webhooks stay as they are; failurePolicy turns to Fail; a right one is left alone."""
    ours = {"service": {"namespace": "istio-system", "name": "istiod"}}
    theirs = {"service": {"namespace": "x", "name": "y"}}
    patcher = WebhookPatcher(
        api,
        "validatingwebhookconfigurations",
        ("istio-system", "istiod"),
        lambda: "ROOT",
        Metrics(),
        fail_when_ready=True,
    )
    value = {
        "webhooks": [
            {"name": "a", "clientConfig": theirs, "failurePolicy": "Ignore"},
            {"name": "b", "clientConfig": ours, "failurePolicy": "Ignore"},
        ]
    }
    operations = patcher.operations(value)
    assert [(o["op"], o["path"]) for o in operations] == [
        ("test", "/webhooks/1/name"),
        ("add", "/webhooks/1/clientConfig/caBundle"),
        ("add", "/webhooks/1/failurePolicy"),
    ]
    done = {**ours, "caBundle": base64.b64encode(b"ROOT").decode()}
    assert not patcher.operations(
        {"webhooks": [{"name": "b", "clientConfig": done, "failurePolicy": "Fail"}]}
    )


async def test_ca_bundle_is_sent_as_a_json_patch(server: KubeServer, api: KubeApi) -> None:
    """The request carries the operations and their content type."""
    sent: list[Any] = []

    def spy(request: web.Request) -> web.Response | None:
        if request.method != "PATCH":
            return None
        sent.append(request.headers["Content-Type"])
        return web.json_response({})

    server.refuse = spy
    patcher = WebhookPatcher(
        api, "mutatingwebhookconfigurations", ("n", "istiod"), lambda: "R", Metrics()
    )
    hook = {"name": "h", "clientConfig": {"service": {"namespace": "n", "name": "istiod"}}}
    raw = msgspec.Raw(msgspec.json.encode({"webhooks": [hook]}))
    async with Tasks("test") as tasks:
        tasks.spawn("patch", patcher.run)
        patcher.changed(("", "istio-sidecar-injector"), kubernetes.decode_object(raw))
        await until(lambda: sent == ["application/json-patch+json"])


async def test_a_bad_plugged_authority_leaves_the_old_one_in_use(
    server: KubeServer, api: KubeApi
) -> None:
    """A key that does not match is reported; the repaired Secret is taken over."""
    held = store(api)
    await held.start()
    before = held.current()
    root, other = Made("plugged", start=time.time() - 60, end=time.time() + 1e8), Made("other")
    good = bundle_files(root, root=root)
    await server.put(SECRETS, plugged({**good, "ca-key.pem": other.key_pem}))
    await held.refresh()
    assert held.current() is before
    assert [f.code for f in held.findings] == ["MLT0302"]
    await server.put(SECRETS, plugged(good))
    await held.refresh()
    assert held.plugged and held.findings == ()
    assert held.current().certificate == root.certificate  # type: ignore[union-attr]


async def test_a_mounted_folder_is_followed(tmp_path: Path, monkeypatch: Any) -> None:
    """The kubelet replaces mounted files without any event."""
    monkeypatch.setattr("meltemi.adapters.ca_store.FOLDER_S", 0.01)
    first, second = (Made(n, start=time.time() - 60, end=time.time() + 1e8) for n in "ab")

    def write(made: Made) -> None:
        for name, data in bundle_files(made, root=made).items():
            (tmp_path / name).write_bytes(data)

    write(first)
    held = store(None, tmp_path)
    await held.start()
    async with Tasks("test") as tasks:
        tasks.spawn("follow", held.run)
        await asyncio.sleep(0)
        write(second)
        await until(lambda: held.current().certificate == second.certificate)  # type: ignore[union-attr]


def plugged(data: dict[str, bytes]) -> dict[str, Any]:
    """The Secret ``cacerts``."""
    return {
        "metadata": {"name": "cacerts", "namespace": "istio-system"},
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


async def test_revocations_are_published_while_they_are_in_force(
    api: KubeApi, server: KubeServer, tmp_path: Path, monkeypatch: Any
) -> None:
    """In a ConfigMap of their own and beside the roots; taken back in time, and when the file goes."""
    monkeypatch.setattr("meltemi.adapters.ca_store.FOLDER_S", 0.01)
    clock = ManualClock(time.time())
    root = Made("root", start=time.time() - 60, end=time.time() + 1e8)
    data = {**bundle_files(root, root=root), "ca-crl.pem": root.crl(7, now=time.time())}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    held = AuthorityStore(clock, "cluster.local", "istio-system", api, tmp_path)
    assert held.published() is None and held.revoked() is None
    await held.start()
    told: list[int] = []
    held.listen(lambda: told.append(1))
    publisher = RootPublisher(api, held.revoked, secrets.CRL_CONFIG_MAP)
    held.listen(publisher.all_changed)
    publisher.set_namespaces({"default"})

    def shown() -> dict[str, str]:
        found = server.objects.get(MAPS, {}).get(("default", secrets.CRL_CONFIG_MAP))
        return found["data"] if found else {}

    async with Tasks("test") as tasks:
        tasks.spawn("follow", held.run)
        tasks.spawn("publish", publisher.run)
        await until(lambda: shown() == {"ca-crl.pem": data["ca-crl.pem"].decode()})
        assert (held.published() or {})["ca-crl.pem"] == data["ca-crl.pem"].decode()
        clock.advance(86400 - 600)  # the list ends in ten minutes
        await until(lambda: told and shown() == {})
        assert "ca-crl.pem" not in (held.published() or {})
