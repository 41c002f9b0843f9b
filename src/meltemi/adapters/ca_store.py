"""Hold the mesh's authority: find it, or make it once for all replicas; and istiod's own serving certificate.

In: a folder (``/etc/cacerts``), or the Secrets ``cacerts`` and ``istio-ca-secret``. Out: the current
``Authority`` and ``Serving``. Promises: with several replicas starting at once exactly one root wins (the API
server's create decides); an unreadable Secret is reported and never overwritten; a Secret that changes is
taken over while running; one that is deleted is written again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meltemi.adapters.ca_grpc import chain_pem, new_serial
from meltemi.adapters.grpc_server import Serving
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.adapters.kube_watch import ObjectKey
from meltemi.ca import authority, secrets
from meltemi.kit.backoff import Backoff
from meltemi.kit.clock import Clock

log = structlog.get_logger("ca")
SERVING_TTL_S = 24 * 3600.0
CHECK_S = 3600.0  # Istio's root check interval
RSA_BITS = 2048


class AuthorityStore:
    """The one authority of this process. ``changed`` callbacks run after each change."""

    def __init__(
        self,
        clock: Clock,
        trust_domain: str,
        namespace: str,
        api: KubeApi | None,
        folder: Path = Path("/etc/cacerts"),
    ) -> None:
        self._clock = clock
        self._trust_domain = trust_domain
        self._namespace = namespace
        self._api = api
        self._folder = folder
        self._current: authority.Authority | None = None
        self._listeners: list[Callable[[], None]] = []
        self.plugged = False
        self._look = asyncio.Event()

    def current(self) -> authority.Authority | None:
        """The authority, once found."""
        return self._current

    def listen(self, callback: Callable[[], None]) -> None:
        """Be called after each change."""
        self._listeners.append(callback)

    async def start(self) -> None:
        """Find or make the authority; returns when there is one. Waits for an API server that is down."""
        backoff = Backoff(0.1, 10.0)
        while self._current is None:
            try:
                self._take(await self._find())
            except (KubeError, ValueError, OSError) as error:
                pause = backoff.next()
                log.error("no certificate authority yet", error=str(error), retry_s=round(pause, 2))
                await asyncio.sleep(pause)

    async def run(self) -> None:
        """Keep level with the Secret or folder, and repair it."""
        while True:
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            await self.refresh()

    def replaced(self, objects: Mapping[ObjectKey, Any]) -> None:
        """A watch of the Secrets lists them: look."""
        self._look.set()

    def changed(self, key: ObjectKey, value: Any) -> None:
        """One changed: look."""
        self._look.set()

    def deleted(self, key: ObjectKey) -> None:
        """One is gone: look."""
        self._look.set()

    async def refresh(self) -> None:
        """Look once; a failure keeps what there is."""
        try:
            self._take(await self._find())
        except (KubeError, ValueError, OSError) as error:
            log.error("certificate authority not refreshed", error=str(error))

    async def _find(self) -> authority.Authority:
        if (self._folder / "ca-cert.pem").exists() or (self._folder / "tls.crt").exists():
            self.plugged = True
            return secrets.authority_of(_files(self._folder))
        if self._api is None:
            return self._current or await self._make()
        plugged = await self._read(secrets.PLUGGED_SECRET)
        if plugged is not None:
            self.plugged = True
            return secrets.authority_of(_decoded(plugged))
        own = await self._read(secrets.SELF_SIGNED_SECRET)
        if own is not None:
            return secrets.authority_of(_decoded(own))
        return await self._create(self._current or await self._make())

    async def _read(self, name: str) -> Mapping[str, Any] | None:
        assert self._api is not None
        try:
            found: Mapping[str, Any] = await self._api.json(
                "GET", collection("v1", "secrets", self._namespace, name)
            )
        except KubeError as error:
            if error.code != 404:
                raise
            return None
        return found

    async def _make(self) -> authority.Authority:
        key = await asyncio.to_thread(rsa.generate_private_key, 65537, RSA_BITS)
        return authority.self_signed(key, self._clock.now(), new_serial(), self._trust_domain)

    async def _create(self, made: authority.Authority) -> authority.Authority:
        assert self._api is not None
        path = collection("v1", "secrets", self._namespace)
        try:
            await self._api.json("POST", path, body=secrets.secret_of(made, self._namespace))
        except KubeError as error:
            if error.code != 409:
                raise
            found = await self._api.json("GET", f"{path}/{secrets.SELF_SIGNED_SECRET}")
            log.info("another replica made the root certificate")
            return secrets.authority_of(_decoded(found))
        log.info("root certificate made", secret=secrets.SELF_SIGNED_SECRET)
        return made

    def _take(self, found: authority.Authority) -> None:
        if self._current is not None and (
            found.certificate == self._current.certificate and found.roots == self._current.roots
        ):
            return
        self._current = found
        log.info(
            "certificate authority ready",
            plugged=self.plugged,
            expires_in_days=round((found.expires - self._clock.now()) / 86400),
        )
        for callback in self._listeners:
            callback()


class ServingCertificate:
    """What istiod shows on its TLS ports: issued by its own authority, renewed at half its life."""

    def __init__(
        self, store: AuthorityStore, clock: Clock, names: tuple[str, ...], identity: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._names = names
        self._identity = identity
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._renew_at = 0.0
        self._serving: Serving | None = None
        self._listeners: list[Callable[[Serving], None]] = []
        store.listen(self.renew)

    def current(self) -> Serving:
        """The certificate to show now."""
        if self._serving is None or self._clock.now() >= self._renew_at:
            self.renew()
        assert self._serving is not None, "the authority is found before anything is served"
        return self._serving

    def listen(self, callback: Callable[[Serving], None]) -> None:
        """Be called with each new certificate."""
        self._listeners.append(callback)

    def renew(self) -> None:
        """Issue a new one. Does nothing without an authority."""
        held = self._store.current()
        if held is None:
            return
        now = self._clock.now()
        issued = authority.issue_server(
            held, self._key, self._names, self._identity, now, new_serial(), SERVING_TTL_S
        )
        self._renew_at = now + (issued.expires - now) / 2
        key = authority.key_pem(self._key).encode()
        self._serving = Serving(key, chain_pem(issued), held.roots.encode())
        for callback in self._listeners:
            callback(self._serving)

    async def run(self) -> None:
        """Renew in time."""
        while True:
            await asyncio.sleep(min(CHECK_S, max(1.0, self._renew_at - self._clock.now())))
            self.current()


def serving_names(namespace: str, revision: str) -> tuple[str, ...]:
    """DNS names of the control plane's Services, Istio's list."""
    services = ["istiod", "istiod-remote", "istio-pilot"]
    if revision and revision != "default":
        services.insert(0, f"istiod-{revision}")
    suffixes = (f"{namespace}.svc", namespace, f"{namespace}.svc.cluster.local")
    return tuple(f"{service}.{suffix}" for service in services for suffix in suffixes)


def _files(folder: Path) -> dict[str, bytes]:
    names = (
        "ca-cert.pem",
        "ca-key.pem",
        "cert-chain.pem",
        "root-cert.pem",
        "tls.crt",
        "tls.key",
        "ca.crt",
    )
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def _decoded(secret: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        return {
            name: base64.b64decode(text, validate=True)
            for name, text in (secret.get("data") or {}).items()
        }
    except (binascii.Error, ValueError, TypeError) as error:
        name = (secret.get("metadata") or {}).get("name", "")
        raise ValueError(f"Secret {name} holds data that is not base64") from error
