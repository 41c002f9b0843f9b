"""Carry out a root rotation: count what proxies hold, share it between replicas, and take the next step.

In: certificates issued, connected proxies, the state in Secret ``istio-ca-rotation``. Out: ConfigMap
``istio-ca-proxies`` (a key for each replica), and the state's next phase, written by the replica that leads.
Promises: everything needed to go on is in the cluster, so any replica can die at any time; a phase ends only
after it was found complete twice in a row; a proxy that did not hear is asked again, with growing pauses.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

import structlog

from meltemi.adapters.ca_store import AuthorityStore
from meltemi.adapters.kube_api import MERGE, KubeApi, KubeError, collection
from meltemi.ca import authority, bundle, rotation, secrets
from meltemi.ca.identity import Identity
from meltemi.kit.clock import Clock
from meltemi.model.proxy import Proxy

log = structlog.get_logger("ca")
# Keys of a signing request's metadata through which an agent says who it is and what it trusts already.
PROXY_HINT, TRUST_HINT = "MeshProxy", "MeshTrusts"
RECORDS_MAX = 20_000  # above this a ConfigMap would be too large
IDLE_S = 30.0
BUSY_S = 1.0
SETTLE_S = 30.0  # after a change of leader, proxies of the one before may still be on their way
AGAIN_S = 60.0
TIDY_S = 3600.0


class Ledger:
    """What each proxy was given last, and what it said it trusts."""

    def __init__(self, clock: Clock, connected: Callable[[], Iterable[Proxy]]) -> None:
        self._clock = clock
        self._connected = connected
        self._records: dict[str, rotation.Held] = {}
        # Names whose records others can know from this replica only.
        self._own: set[str] = set()

    def note(
        self,
        who: Identity,
        hints: Mapping[str, Any],
        peer: str,
        held: authority.Authority,
        expires: float,
    ) -> None:
        """A certificate was issued. A hint counts only for a proxy of the caller's own namespace.

        An agent that gives no hint (Istio's) is known by its address, and trusts the roots that came with its
        certificate.
        """
        name, trusts = hints.get(PROXY_HINT), hints.get(TRUST_HINT)
        if not isinstance(name, str) or not name.endswith(f".{who.namespace}"):
            name, trusts = f"@{address_of(peer)}", None
        roots = trusts.split(",") if isinstance(trusts, str) else authority.fingerprints(held.roots)
        self._own.add(name)
        self._records.pop(name, None)
        self._records[name] = rotation.Held(
            frozenset(filter(None, roots)),
            authority.fingerprint(held.certificate),
            self._clock.now(),
            expires,
        )
        while len(self._records) > RECORDS_MAX:
            oldest = next(iter(self._records))
            del self._records[oldest]
            self._own.discard(oldest)

    def adopt(self, records: Mapping[str, rotation.Held], *, own: bool = False) -> None:
        """What another replica knew, or (``own``) an earlier run of this one."""
        for name, held in records.items():
            if name not in self._records or held.at > self._records[name].at:
                self._records[name] = held
                if own:
                    self._own.add(name)

    def report(self, token: str, base: str) -> rotation.Report:
        """What to share: of the proxies connected here, and what was issued here.

        Records of addresses take the name of the connected proxy that has the address.
        """
        now = self._clock.now()
        self._records = {n: h for n, h in self._records.items() if h.expires > now}
        self._own &= self._records.keys()
        connected = list(self._connected())
        here = self._own | {proxy.id for proxy in connected}
        records = {name: held for name, held in self._records.items() if name in here}
        for proxy in connected:
            for address in proxy.addresses:
                found = self._records.get(f"@{address}")
                named = records.get(proxy.id)
                if found and (named is None or found.at > named.at):
                    records[proxy.id] = found
        return rotation.Report(token, base, frozenset(p.id for p in connected), records)


def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer: ``ipv4:10.0.0.1:1234``, ``ipv6:%5B::1%5D:1234``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


class Sharer:
    """Writes this replica's report, when it differs from the one written before."""

    def __init__(
        self, api: KubeApi, store: AuthorityStore, ledger: Ledger, namespace: str, replica: str
    ) -> None:
        self._api = api
        self._store = store
        self._ledger = ledger
        self._namespace = namespace
        self._replica = replica
        self._written = ""
        self._wake = asyncio.Event()
        store.listen(self._wake.set)

    async def run(self) -> None:
        """Share until cancelled: soon while a rotation runs, seldom otherwise."""
        for name, report in (await read_reports(self._api, self._namespace)).items():
            self._ledger.adopt(report.records, own=name == self._replica)
        while True:
            try:
                await self.share()
            except KubeError as error:
                log.warning("what proxies hold is not shared", error=str(error))
            try:
                async with asyncio.timeout(BUSY_S if self._store.rotation else IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def share(self) -> None:
        """Write the report if it is another one."""
        text = rotation.write_report(report_now(self._store, self._ledger))
        if text == self._written:
            return
        path = collection("v1", "configmaps", self._namespace)
        body: dict[str, Any] = {"data": {self._replica: text}}
        try:
            await self._api.json(
                "PATCH", f"{path}/{rotation.PROXIES_MAP}", body=body, content_type=MERGE
            )
        except KubeError as error:
            if error.code != 404:
                raise
            meta = {"name": rotation.PROXIES_MAP, "namespace": self._namespace}
            made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, **body}
            await self._api.json("POST", path, body=made)
        self._written = text


def report_now(store: AuthorityStore, ledger: Ledger) -> rotation.Report:
    """What this replica has to say."""
    state, base = store.rotation, store.base
    return ledger.report(
        state.token if state else "", authority.fingerprint(base.certificate) if base else ""
    )


async def read_reports(api: KubeApi, namespace: str) -> dict[str, rotation.Report]:
    """The reports of all replicas, dead ones included. Raises KubeError."""
    try:
        found = await api.json(
            "GET", collection("v1", "configmaps", namespace, rotation.PROXIES_MAP)
        )
    except KubeError as error:
        if error.code != 404:
            raise
        return {}
    data = found.get("data") or {}
    return {name: rotation.read_report(text) for name, text in data.items()}


async def read_replicas(api: KubeApi, namespace: str) -> set[str]:
    """Names of the control plane's running pods."""
    pods = await api.list("v1", "pods", namespace, selector="app=istiod")
    return {
        pod["metadata"]["name"]
        for pod in pods
        if (pod.get("status") or {}).get("phase") == "Running"
        and not pod["metadata"].get("deletionTimestamp")
    }


class Leading(Protocol):
    """Whether this replica may decide."""

    @property
    def leading(self) -> bool:
        """True while it may."""
        ...


class Conductor:
    """Moves the rotation on, on the replica that leads."""

    def __init__(
        self,
        api: KubeApi,
        store: AuthorityStore,
        ledger: Ledger,
        unpublished: Callable[[], tuple[str, ...]],
        leader: Leading,
        clock: Clock,
        namespace: str,
        replica: str,
        *,
        pause_s: float = BUSY_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._api = api
        self._store = store
        self._ledger = ledger
        self._unpublished = unpublished
        self._leader = leader
        self._clock = clock
        self._namespace = namespace
        self._replica = replica
        self._pause_s = pause_s
        self._settle_s = settle_s
        self._began = clock.monotonic()
        self._tidied = -TIDY_S
        self._complete = ""

    async def run(self) -> None:
        """Conduct until cancelled."""
        while True:
            await asyncio.sleep(self._pause_s)
            if not self._leader.leading:
                self._began = self._clock.monotonic()
                continue
            try:
                await self.step()
                await self._tidy()
            except KubeError as error:
                log.warning("rotation waits", error=str(error))

    @property
    def _young(self) -> bool:
        """Whether proxies of a leader before this one may still be on their way here."""
        return self._clock.monotonic() - self._began < self._settle_s

    async def step(self) -> None:
        """Look at the proof once, and act on it."""
        state, pair = self._store.rotation, self._store.pair
        if state is None or pair is None:
            return
        proof = await self._proof(state)
        if state.phase is rotation.Phase.COMMIT:
            await self._install(state, pair)
        now = self._clock.now()
        following = rotation.advance(state, pair, proof, now)
        if following == state:
            self._complete = ""
            await self._ask_again(state, now)
            return
        if self._complete != state.token:
            self._complete = state.token
            return
        self._complete = ""
        log.info(
            "rotation goes on",
            done=state.phase.value,
            next=following.phase.value if following else "finished",
            proxies=len(proof.proxies),
        )
        if following is None:
            await self._finish(state)
        else:
            await self._write(following, state)

    async def _proof(self, state: rotation.Rotation) -> rotation.Proof:
        reports = await read_reports(self._api, self._namespace)
        alive = await read_replicas(self._api, self._namespace) | {self._replica}
        for report in reports.values():
            self._ledger.adopt(report.records)
        # Its own is taken fresh: a proxy may have come since it was written.
        reports[self._replica] = report_now(self._store, self._ledger)
        late = (reports[name].rotation_id != state.id for name in reports.keys() - alive)
        counted = {
            name: reports.get(name, rotation.Report())
            for name in (alive | (reports.keys() if self._young else set()))
        }
        proof = rotation.proof_of(counted, self._unpublished())
        known = rotation.proof_of({**reports, **counted}).proxies
        return rotation.Proof(
            {name: known.get(name) for name in proof.proxies},
            {name: view for name, view in proof.replicas.items() if name in alive},
            proof.unpublished,
            # One that is gone may have heard of a proxy after its last report, which is from before this rotation.
            settled=not (self._young and any(late)),
        )

    async def _tidy(self) -> None:
        """Forget what replicas that are long gone had shared; what they knew stays known."""
        now = self._clock.monotonic()
        if self._young or now - self._tidied < TIDY_S:
            return
        self._tidied = now
        reports = await read_reports(self._api, self._namespace)
        alive = await read_replicas(self._api, self._namespace) | {self._replica}
        gone = reports.keys() - alive
        for name in gone:
            self._ledger.adopt(reports[name].records, own=True)
        if gone:
            path = collection("v1", "configmaps", self._namespace, rotation.PROXIES_MAP)
            body = {"data": dict.fromkeys(gone)}
            await self._api.json("PATCH", path, body=body, content_type=MERGE)

    async def _ask_again(self, state: rotation.Rotation, now: float) -> None:
        if now - state.since < AGAIN_S * 2.0**state.renewal:
            return
        renewed = rotation.ask_again(state)
        log.info(
            "proxies are asked to renew once more", phase=state.phase.value, time=renewed.renewal
        )
        await self._write(renewed, state)

    async def _write(self, following: rotation.Rotation, before: rotation.Rotation) -> None:
        """The next state, unless somebody gave an order meanwhile."""
        kept = await self._unchanged(before)
        if kept is not None:
            await write_state(self._api, self._namespace, following, kept)
        await self._store.refresh()

    async def _unchanged(self, state: rotation.Rotation) -> Mapping[str, Any] | None:
        """The Secret, if it still says so."""
        path = collection("v1", "secrets", self._namespace, rotation.SECRET)
        kept: Mapping[str, Any] = await self._api.json("GET", path)
        text = base64.b64decode(kept["data"][rotation.STATE_KEY]).decode()
        return kept if rotation.read_state(text) == state else None

    async def _install(self, state: rotation.Rotation, pair: rotation.Pair) -> None:
        """Put the new authority into the Secret where it will live."""
        if authority.fingerprint(pair.old.certificate) == authority.fingerprint(
            pair.new.certificate
        ):
            return
        await install(self._api, self._namespace, state.target, pair.new)
        await self._store.refresh()

    async def _finish(self, state: rotation.Rotation) -> None:
        """Forget the rotation, unless somebody gave an order meanwhile."""
        kept = await self._unchanged(state)
        if kept is not None:
            same = {"preconditions": {"resourceVersion": kept["metadata"]["resourceVersion"]}}
            path = collection("v1", "secrets", self._namespace, rotation.SECRET)
            await self._api.request("DELETE", path, body=same)
        await self._store.refresh()


async def write_state(
    api: KubeApi, namespace: str, state: rotation.Rotation, kept: Mapping[str, Any]
) -> None:
    """Change the state in the Secret that was read as ``kept``; KubeError 409 if it is another one by now."""
    text = base64.b64encode(rotation.write_state(state).encode()).decode()
    body = {
        "metadata": {"resourceVersion": kept["metadata"]["resourceVersion"]},
        "data": {rotation.STATE_KEY: text},
    }
    path = collection("v1", "secrets", namespace, rotation.SECRET)
    await api.json("PATCH", path, body=body, content_type=MERGE)


async def install(api: KubeApi, namespace: str, name: str, held: authority.Authority) -> None:
    """Write an authority to its Secret, whatever was there."""
    files = secrets.files_of(held)
    if name == secrets.SELF_SIGNED_SECRET:
        files.pop("cert-chain.pem", None)
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in files.items()}
    path = collection("v1", "secrets", namespace)
    # Files of the authority before that the new one lacks must not stay beside it.
    data = {**dict.fromkeys(bundle.FILES), **encoded}
    try:
        await api.json("PATCH", f"{path}/{name}", body={"data": data}, content_type=MERGE)
    except KubeError as error:
        if error.code != 404:
            raise
        made = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "data": encoded,
        }
        await api.json("POST", path, body=made)


async def start(
    api: KubeApi, namespace: str, state: rotation.Rotation, new: authority.Authority
) -> None:
    """Create the Secret that begins a rotation. KubeError 409 when one runs already."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "istio.io/ca-rotation",
        "metadata": {"name": rotation.SECRET, "namespace": namespace},
        "stringData": {**secrets.files_of(new), rotation.STATE_KEY: rotation.write_state(state)},
    }
    await api.json("POST", collection("v1", "secrets", namespace), body=body)
