"""Hold the mesh's authority: find it, or make it once for all replicas; and istiod's own serving certificate.

In: a folder (``/etc/cacerts``), or the Secrets ``cacerts`` and ``istio-ca-secret``, and ``istio-ca-rotation``
while a rotation runs. Out: the current ``Authority`` and ``Serving``. Promises: a plugged-in authority that
cannot work is reported and never used, the one before stays; with several replicas starting at once exactly one root wins (the API
server's create decides); an unreadable Secret is reported and never overwritten; a Secret that changes is
taken over while running; one that is deleted is written again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meltemi.adapters.ca_grpc import chain_pem, new_serial
from meltemi.adapters.grpc_server import Serving
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.adapters.kube_watch import ObjectKey
from meltemi.ca import authority, bundle, rotation, secrets
from meltemi.kit.backoff import Backoff
from meltemi.kit.clock import Clock
from meltemi.model.origin import Finding, Level

log = structlog.get_logger("ca")
SERVING_TTL_S = 24 * 3600.0
CHECK_S = 3600.0  # Istio's root check interval
FOLDER_S = 5.0  # how often a mounted folder is looked at
RSA_BITS = 2048


class BadBundle(Exception):
    """A plugged-in authority cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Making:
    """How a self-signed root is made, in which Secret, and made anew: looked at every ``check_s`` seconds (from a random moment on, with
    ``jitter``), renewed with its own key in the last ``grace_percentile`` percent of its life.
    """

    ttl_s: float = authority.ROOT_TTL_S
    rsa_bits: int = RSA_BITS
    check_s: float = CHECK_S
    grace_percentile: float = 20.0
    jitter: bool = True
    secret: str = secrets.SELF_SIGNED_SECRET


class AuthorityStore:
    """The one authority of this process. Listeners run after each change.

    ``base`` is what the Secret or folder holds; ``current`` is that or, while a rotation runs, what
    ``ca.rotation`` makes of it and the new authority.
    """

    def __init__(
        self,
        clock: Clock,
        trust_domain: str,
        namespace: str,
        api: KubeApi | None,
        folder: Path = Path("/etc/cacerts"),
        making: Making | None = None,
    ) -> None:
        self._clock = clock
        self._trust_domain = trust_domain
        self._namespace = namespace
        self._api = api
        self._folder = folder
        self._making = making or Making()
        self._current: authority.Authority | None = None
        self._listeners: list[Callable[[], None]] = []
        self._look = asyncio.Event()
        self.base: authority.Authority | None = None
        self.rotation: rotation.Rotation | None = None
        self.pair: rotation.Pair | None = None
        self.findings: tuple[Finding, ...] = ()
        self.plugged = False

    def current(self) -> authority.Authority | None:
        """The authority, once found."""
        return self._current

    def published(self) -> dict[str, str] | None:
        """What every namespace shall trust, by the ConfigMap's keys; None while there is nothing."""
        revoked = self.revoked()
        if self._current is None or revoked is None:
            return None
        renewal = self.rotation.renewal if self.rotation else 0
        return {secrets.ROOT_KEY: rotation.published(self._current.roots, renewal), **revoked}

    def revoked(self) -> dict[str, str] | None:
        """The revocation lists that verifiers shall use; empty without any, None while there is no authority."""
        if self._current is None:
            return None
        if not bundle.is_usable_crl(self._current, self._clock.now()):
            return {}
        return {bundle.CRL: self._current.crl}

    def listen(self, callback: Callable[[], None]) -> None:
        """Be called after each change."""
        self._listeners.append(callback)

    async def start(self) -> None:
        """Find or make the authority; returns when there is one. Waits for an API server that is down."""
        backoff = Backoff(0.1, 10.0)
        while self._current is None:
            try:
                await self._read_all()
            except (KubeError, ValueError, OSError, BadBundle) as error:
                pause = backoff.next()
                log.error("no certificate authority yet", error=str(error), retry_s=round(pause, 2))
                await asyncio.sleep(pause)

    async def run(self) -> None:
        """Keep level with the Secret or folder, and repair it."""
        mark, looked = self._mark(), self._clock.monotonic()
        if self._making.jitter:  # replicas look at different times
            looked -= random.uniform(0, self._making.check_s)  # noqa: S311 - no secret
        revoked = self.revoked()
        while True:
            try:
                async with asyncio.timeout(min(FOLDER_S, self._making.check_s)):
                    await self._look.wait()
            except TimeoutError:
                if revoked != (revoked := self.revoked()):
                    log.warning("revocation lists came into force or are out of date")
                    self._tell()
                # A mounted Secret changes without an event: the kubelet swaps a symlink.
                found = self._mark()
                if found == mark and self._clock.monotonic() - looked < self._making.check_s:
                    continue
            self._look.clear()
            mark, looked = self._mark(), self._clock.monotonic()
            await self.refresh()
            await self.renew()

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
            await self._read_all()
        except (KubeError, ValueError, OSError, BadBundle) as error:
            log.error(
                "certificate authority not refreshed; the present one stays in use",
                error=str(error),
            )

    async def renew(self) -> None:
        """Give a self-signed root another life in time; a failure keeps what there is, another replica may have done it."""
        held = self.base
        percentile, ttl_s = self._making.grace_percentile, self._making.ttl_s
        if held is None or self.plugged or self.rotation is not None:
            return
        now = self._clock.now()
        if not authority.needs_renewal(held, now, percentile):
            return
        made = authority.renewed(held, now, new_serial(), ttl_s)
        try:
            await self._replace(held, made)
        except (KubeError, ValueError) as error:
            log.error("root certificate not renewed", error=str(error))
            return
        log.info("root certificate renewed", days=round((made.expires - now) / 86400))
        await self.refresh()

    async def _replace(self, held: authority.Authority, made: authority.Authority) -> None:
        """Write a renewed root in the place of the one that was read."""
        if self._api is None:
            self.base = made
            return
        # In cacerts it is only if it was made there; what people plug in is not ours to renew.
        kept = await self._read(secrets.PLUGGED_SECRET)
        kept = kept or await self._read(secrets.SELF_SIGNED_SECRET)
        if kept is None or secrets.authority_of(_decoded(kept)).certificate != held.certificate:
            return
        name = str(kept["metadata"]["name"])
        body = secrets.secret_of(made, self._namespace, name)
        # Of replicas that do it at once, the API server takes the first.
        body["metadata"]["resourceVersion"] = kept["metadata"]["resourceVersion"]
        path = collection("v1", "secrets", self._namespace, name)
        await self._api.json("PUT", path, body=body)

    async def _read_all(self) -> None:
        base = await self._find()
        state = new = None
        if self._api is not None and (kept := await self._read(rotation.SECRET)) is not None:
            data = _decoded(kept)
            state = rotation.read_state(data.get(rotation.STATE_KEY, b"").decode(errors="replace"))
            new = secrets.authority_of(data)
        self._take(base, state, new)

    async def _find(self) -> authority.Authority:
        if self._has_folder() and not await self._is_own():
            return self._examined(_files(self._folder), str(self._folder))
        if self._api is None:
            return self.base or await self._make()
        plugged = await self._read(secrets.PLUGGED_SECRET)
        if plugged is not None and plugged.get("type") != secrets.SELF_SIGNED_TYPE:
            return self._examined(_decoded(plugged), secrets.PLUGGED_SECRET)
        self.findings, self.plugged = (), False
        own = plugged or await self._read(secrets.SELF_SIGNED_SECRET)
        if own is not None:
            return secrets.authority_of(_decoded(own))
        return await self._create(self.base or await self._make())

    async def _is_own(self) -> bool:
        """Whether the folder is the mount of a Secret that istiod made itself."""
        if self._api is None or self._making.secret != secrets.PLUGGED_SECRET:
            return False
        found = await self._read(secrets.PLUGGED_SECRET)
        return found is not None and found.get("type") == secrets.SELF_SIGNED_TYPE

    def _has_folder(self) -> bool:
        return any((self._folder / name).exists() for name in (bundle.CERT, "tls.crt"))

    def _mark(self) -> tuple[object, ...]:
        """Changes when the folder's content does."""
        marks: list[object] = []
        for name in bundle.FILES:
            try:
                status = (self._folder / name).stat()
            except OSError:
                continue
            marks += [name, status.st_ino, status.st_mtime_ns, status.st_size]
        return tuple(marks)

    def _examined(self, data: Mapping[str, bytes], source: str) -> authority.Authority:
        found, self.findings = bundle.examine(data, self._clock.now(), source)
        for finding in self.findings:
            if finding.level is not Level.ERROR:
                log.warning("plugged-in authority", finding=str(finding))
        if found is None:
            raise BadBundle("; ".join(map(str, self.findings)))
        self.plugged = True
        return found

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
        key = await asyncio.to_thread(rsa.generate_private_key, 65537, self._making.rsa_bits)
        return authority.self_signed(
            key, self._clock.now(), new_serial(), self._trust_domain, self._making.ttl_s
        )

    async def _create(self, made: authority.Authority) -> authority.Authority:
        assert self._api is not None
        path = collection("v1", "secrets", self._namespace)
        try:
            body = secrets.secret_of(made, self._namespace, self._making.secret)
            await self._api.json("POST", path, body=body)
        except KubeError as error:
            if error.code != 409:
                raise
            found = await self._api.json("GET", f"{path}/{self._making.secret}")
            log.info("another replica made the root certificate")
            return secrets.authority_of(_decoded(found))
        log.info("root certificate made", secret=self._making.secret)
        return made

    def _take(
        self,
        base: authority.Authority,
        state: rotation.Rotation | None,
        new: authority.Authority | None,
    ) -> None:
        pair = rotation.Pair(base, new) if new is not None else None
        before = (_facts(self._current), self.rotation, _facts(self.base))
        if self._current is not None and state is None and self.rotation is None:
            _warn_of_jump(self._current, base)
        current = rotation.effective(pair, state.phase) if pair and state else base
        self.base, self.rotation, self.pair, self._current = base, state, pair, current
        if before == (_facts(current), state, _facts(base)):
            return
        log.info(
            "certificate authority ready",
            plugged=self.plugged,
            signs=authority.fingerprint(current.certificate),
            trusted=authority.fingerprints(current.roots),
            rotation=state.phase.value if state else "none",
            expires_in_days=round((current.expires - self._clock.now()) / 86400),
        )
        self._tell()

    def _tell(self) -> None:
        for callback in self._listeners:
            callback()


def _facts(held: authority.Authority | None) -> tuple[object, ...]:
    return (held.certificate, held.chain, held.roots, held.crl) if held else ()


def _warn_of_jump(before: authority.Authority, after: authority.Authority) -> None:
    """Say so when certificates in use are no longer trusted: nobody rotated, somebody replaced."""
    # A renewed root has its old key: what it signed stays good.
    keys = [root.public_key() for root in after.root_certificates]
    lost = [root for root in before.root_certificates if root.public_key() not in keys]
    if lost:
        log.warning(
            "a root in use was replaced without overlap: proxies refuse each other until all have renewed; "
            "use meltemi ca rotate --to DIR instead",
            lost=sorted(map(authority.fingerprint, lost)),
        )


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
    return {name: (folder / name).read_bytes() for name in bundle.FILES if (folder / name).exists()}


def _decoded(secret: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        return {
            name: base64.b64decode(text, validate=True)
            for name, text in (secret.get("data") or {}).items()
        }
    except (binascii.Error, ValueError, TypeError) as error:
        name = (secret.get("metadata") or {}).get("name", "")
        raise ValueError(f"Secret {name} holds data that is not base64") from error
