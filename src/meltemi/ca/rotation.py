"""Replace the mesh's root without losing a request: a state machine without a clock.

In: the state that the cluster keeps, an order (advance, abort, resume), and the proof: what every connected
proxy trusts and holds. Out: the next state, or what is still waited for. Promises: nobody is shown a
certificate before everybody trusts its root; a root is taken away only after nobody holds a certificate under
it; every state can be left forwards and backwards but the last; the same state and proof always give the same
answer, so any replica can go on where another stopped.

```
 start ─► DISTRIBUTE ─► ISSUE ─► RETIRE ─► COMMIT ─► (done: the new authority is the only one)
              │  ▲         │  ▲      │
        abort │  │ resume  │  │      │ abort
              ▼  │         │  │      ▼
            REVERT ◄───────┘  └── RESTORE ─► REVERT ─► (done: the old authority as before)
```

| phase | signs | trusted | left when every connected proxy |
|---|---|---|---|
| DISTRIBUTE | old | old, new | trusts the new root |
| ISSUE | new | new, old | holds a certificate of the new authority |
| RETIRE | new | new | no longer trusts the old root |
| COMMIT | new | new | (when every replica has read the new authority from its own place) |
| RESTORE | new | new, old | trusts the old root again |
| REVERT | old | old, new | holds a certificate of the old authority |
"""

from __future__ import annotations

import base64
import enum
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meltemi.ca import authority
from meltemi.ca.authority import Authority

SECRET = "istio-ca-rotation"  # noqa: S105 - a Secret's name
STATE_KEY = "state.json"
PROXIES_MAP = "istio-ca-proxies"
_REPORT_LENGTH_MAX = 16 * 1024 * 1024


class Phase(enum.Enum):
    """Where a rotation is."""

    DISTRIBUTE = "distribute"
    ISSUE = "issue"
    RETIRE = "retire"
    COMMIT = "commit"
    RESTORE = "restore"
    REVERT = "revert"


TEXT: Mapping[Phase, str] = {
    Phase.DISTRIBUTE: "the new root is distributed beside the old one",
    Phase.ISSUE: "the new authority signs; proxies renew",
    Phase.RETIRE: "the old root is withdrawn",
    Phase.COMMIT: "the new authority takes the old one's place",
    Phase.RESTORE: "going back: the old root is distributed again",
    Phase.REVERT: "going back: the old authority signs; proxies renew",
}
_FORWARD = {
    Phase.DISTRIBUTE: Phase.ISSUE,
    Phase.ISSUE: Phase.RETIRE,
    Phase.RETIRE: Phase.COMMIT,
    Phase.COMMIT: None,
    Phase.RESTORE: Phase.REVERT,
    Phase.REVERT: None,
}
_ABORT = {
    Phase.DISTRIBUTE: Phase.REVERT,
    Phase.ISSUE: Phase.REVERT,
    Phase.RETIRE: Phase.RESTORE,
}
_RESUME = {Phase.REVERT: Phase.DISTRIBUTE, Phase.RESTORE: Phase.ISSUE}
# Phases that end when every proxy has another certificate.
_RENEWING = frozenset({Phase.ISSUE, Phase.REVERT})
_OLD_SIGNS = frozenset({Phase.DISTRIBUTE, Phase.REVERT})


class OrderRefused(Exception):
    """The order makes no sense in this phase; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The state that the cluster keeps. ``target`` is the Secret that the new authority will live in.

    ``since`` is when the phase began, seconds since the epoch; ``renewal`` counts how often proxies were asked
    again in this phase.
    """

    id: str
    phase: Phase
    target: str
    since: float
    renewal: int = 0

    @property
    def token(self) -> str:
        """What a replica reports to say that it works in this phase."""
        return f"{self.id}/{self.phase.value}"


@dataclass(frozen=True, slots=True)
class Held:
    """What a proxy has: short names of the roots it trusts and of the certificate that signed its own.

    ``at`` and ``expires`` are seconds since the epoch.
    """

    trusts: frozenset[str]
    issuer: str
    at: float = 0.0
    expires: float = 0.0


@dataclass(frozen=True, slots=True)
class Proof:
    """What is known of the mesh. A proxy is None when it is connected and nothing is known of it.

    ``replicas``: (phase token, short name of the authority in its own place) of each control plane;
    ``unpublished``: namespaces whose root ConfigMap is not up to date. ``settled`` is False while proxies may be
    connected that nobody who is alive has heard of.
    """

    proxies: Mapping[str, Held | None] = field(default_factory=dict)
    replicas: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unpublished: tuple[str, ...] = ()
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Pair:
    """The two authorities of a rotation."""

    old: Authority
    new: Authority


def begin(identity: str, target: str, now: float) -> Rotation:
    """A new rotation; ``identity`` tells it from others."""
    return Rotation(identity, Phase.DISTRIBUTE, target, now)


def effective(pair: Pair, phase: Phase) -> Authority:
    """The authority to work with: who signs, and what is trusted.

    The signing authority's root comes first, so that the bundle changes with each phase: that is what makes
    agents renew. (Under one root it is ``published`` that changes.)
    """
    signs, other = (pair.old, pair.new) if phase in _OLD_SIGNS else (pair.new, pair.old)
    if phase in (Phase.RETIRE, Phase.COMMIT):
        return signs
    roots = authority.merge_bundles(signs.roots, other.roots)
    return replace(signs, roots=roots, crl=_revocations(signs, other))


def _revocations(signs: Authority, other: Authority) -> str:
    """Verifiers need a list of every authority in use, or none: with one missing they refuse its certificates."""
    if not (signs.crl and other.crl):
        return ""
    return signs.crl.rstrip() + "\n" + other.crl


def waiting_for(state: Rotation, pair: Pair, proof: Proof) -> tuple[str, ...]:
    """Why the phase is not over, a line for each cause; empty when it is."""
    lines = [
        f"istiod {name} has not taken over this phase yet"
        for name, (token, _) in sorted(proof.replicas.items())
        if token != state.token
    ]
    if not proof.settled:
        lines.append("istiod has just started: proxies are still on their way to it")
    if proof.unpublished:
        lines.append(f"the root is not yet published in {_some(proof.unpublished)}")
    missing = [name for name, held in proof.proxies.items() if not _done(state.phase, pair, held)]
    if missing:
        lines.append(f"{len(missing)} of {len(proof.proxies)} proxies: {_some(sorted(missing))}")
    if state.phase is Phase.COMMIT:
        wanted = authority.fingerprint(pair.new.certificate)
        lines += [
            f"istiod {name} still reads the old authority from its own place"
            for name, (_, base) in sorted(proof.replicas.items())
            if base != wanted
        ]
    return tuple(lines)


def advance(state: Rotation, pair: Pair, proof: Proof, now: float) -> Rotation | None:
    """The next state: the same one while something is waited for; None when the rotation is over."""
    if waiting_for(state, pair, proof):
        return state
    following = _FORWARD[state.phase]
    return _enter(state, following, now, pair) if following else None


def _enter(state: Rotation, phase: Phase, now: float, pair: Pair | None) -> Rotation:
    """The beginning of a phase.

    Below one root, authorities can be exchanged without the bundle telling anybody: then proxies are asked at once.
    """
    silent = pair is not None and _names(pair.old) == _names(pair.new)
    return replace(state, phase=phase, since=now, renewal=int(silent and phase in _RENEWING))


def abort(state: Rotation, now: float, pair: Pair | None = None) -> Rotation:
    """Go back to the old authority. Raises OrderRefused."""
    if state.phase in _RESUME:
        return state
    following = _ABORT.get(state.phase)
    if following is None:
        raise OrderRefused(
            "the new authority is already in place; to go back, rotate again with: meltemi ca rotate --to DIR"
        )
    return _enter(state, following, now, pair)


def resume(state: Rotation, now: float, pair: Pair | None = None) -> Rotation:
    """Go forward again. A rotation that goes forward stays as it is."""
    following = _RESUME.get(state.phase)
    return _enter(state, following, now, pair) if following else state


def ask_again(state: Rotation) -> Rotation:
    """The same phase, with one more request to renew."""
    return replace(state, renewal=state.renewal + 1)


def _done(phase: Phase, pair: Pair, held: Held | None) -> bool:
    if phase is Phase.COMMIT:
        return True
    if held is None:
        return False
    old, new = _names(pair.old), _names(pair.new)
    if phase is Phase.DISTRIBUTE:
        return new <= held.trusts
    if phase is Phase.RESTORE:
        return old <= held.trusts
    if phase is Phase.RETIRE:
        return new <= held.trusts and not (old - new) & held.trusts
    signs = pair.old if phase is Phase.REVERT else pair.new
    return held.issuer == authority.fingerprint(signs.certificate)


def _names(held: Authority) -> frozenset[str]:
    return frozenset(map(authority.fingerprint, held.root_certificates))


def _some(names: Iterable[str], limit: int = 3) -> str:
    every = list(names)
    rest = len(every) - limit
    return ", ".join(every[:limit]) + (f" and {rest} more" if rest > 0 else "")


# --- what the cluster keeps ---------------------------------------------------------------------------------


def write_state(state: Rotation) -> str:
    """The state as text."""
    body = {
        "id": state.id,
        "phase": state.phase.value,
        "target": state.target,
        "since": state.since,
        "renewal": state.renewal,
    }
    return json.dumps(body, sort_keys=True)


def read_state(text: str) -> Rotation:
    """The state of a text. Raises ValueError with a sentence for people."""
    try:
        body: Mapping[str, Any] = json.loads(text)
        return Rotation(
            str(body["id"]),
            Phase(body["phase"]),
            str(body["target"]),
            float(body["since"]),
            int(body["renewal"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Secret {SECRET}, key {STATE_KEY}, cannot be read: {error}") from error


def published(roots: str, renewal: int) -> str:
    """The text of the root ConfigMap. A line before the certificates asks agents to renew once more."""
    return f"# renewal {renewal}\n{roots}" if renewal else roots


@dataclass(frozen=True, slots=True)
class Report:
    """What one control plane knows of proxies, as it shares it with the others."""

    token: str = ""
    base: str = ""
    connected: frozenset[str] = frozenset()
    records: Mapping[str, Held] = field(default_factory=dict)

    @property
    def rotation_id(self) -> str:
        """The rotation that it was written in; "" outside of one."""
        return self.token.partition("/")[0]


def write_report(report: Report) -> str:
    """A report as text for a ConfigMap, which holds a mebibyte: packed, some 40 bytes a proxy."""
    body = {
        "token": report.token,
        "base": report.base,
        "connected": sorted(report.connected),
        "records": {
            name: [sorted(h.trusts), h.issuer, round(h.at, 3), round(h.expires)]
            for name, h in sorted(report.records.items())
        },
    }
    packed = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 9)
    return base64.b64encode(packed).decode()


def read_report(text: str) -> Report:
    """The report of a text; an empty one when it cannot be read (it is written again soon)."""
    try:
        # Bounded, because whoever may write the ConfigMap chooses what unpacks.
        packed = zlib.decompressobj()
        body = json.loads(packed.decompress(base64.b64decode(text), _REPORT_LENGTH_MAX))
        records = {
            name: Held(frozenset(map(str, v[0])), str(v[1]), float(v[2]), float(v[3]))
            for name, v in body["records"].items()
        }
        return Report(
            str(body["token"]), str(body["base"]), frozenset(map(str, body["connected"])), records
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, zlib.error):
        return Report()


def proof_of(reports: Mapping[str, Report], unpublished: tuple[str, ...] = ()) -> Proof:
    """All reports together. Of two records of one proxy the newer counts."""
    newest: dict[str, Held] = {}
    for report in reports.values():
        for name, held in report.records.items():
            if name not in newest or held.at > newest[name].at:
                newest[name] = held
    connected = {name for report in reports.values() for name in report.connected}
    return Proof(
        {name: newest.get(name) for name in sorted(connected)},
        {replica: (report.token, report.base) for replica, report in reports.items()},
        unpublished,
    )
