"""``Mesh``: what a test works with.

In: the user's YAML. Out: clients whose requests run through real proxies. One ``Mesh`` per test; what runs (the rig) is
shared by all tests of a process and reconfigured in milliseconds.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meltemi.config.decode import RawObject
from meltemi.model.origin import Finding, Level
from meltemi.registry.offline import OfflineMesh, OfflineProxy, complete
from meltemi.testing.client import Client, TlsOptions
from meltemi.testing.commands import OwnCommands
from meltemi.testing.explanation import Explanations
from meltemi.testing.response import Exchange
from meltemi.testing.rig import Rig
from meltemi.testing.sources import Sources
from meltemi.testing.standins import Received, Trouble

_HISTORY = 20


class WrongConfiguration(Exception):
    """The YAML has errors; the text names file, line, field and remedy of each."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("the configuration has errors:\n" + "\n".join(f"  {f}" for f in findings))


class Session:
    """What the tests of one process share. Starts nothing before the first ``apply``."""

    def __init__(self) -> None:
        self.sources = Sources()
        self._rig: Rig | None = None

    def rig(self, trust_domain: str) -> Rig:
        """The rig for a trust domain; another one replaces it."""
        if self._rig is not None and self._rig.control.trust_domain != trust_domain:
            self.close()
        if self._rig is None:
            self._rig = Rig(trust_domain)
        return self._rig

    @property
    def started(self) -> Rig | None:
        """The rig, when there is one."""
        return self._rig

    def close(self) -> None:
        """Stop everything."""
        if self._rig is not None:
            self._rig.close()
            self._rig = None


class Failure:
    """A workload that fails until ``end`` or the end of the ``with`` block or test."""

    def __init__(self, mesh: Mesh, workload: str) -> None:
        self._mesh = mesh
        self._workload = workload

    def end(self) -> None:
        """It works again."""
        self._mesh.heal(self._workload)

    def __enter__(self) -> Failure:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Mesh:
    """See the module."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._session = session
        self._folder = folder
        self._raws: list[RawObject] = []
        self._unread: list[Finding] = []
        self._mesh_config = ""
        self._rig: Rig | None = None
        self._commands: OwnCommands | None = None
        self.objects = OfflineMesh()
        self.history: deque[Exchange] = deque(maxlen=_HISTORY)

    # --- configuration ------------------------------------------------------------------------------

    def apply(
        self,
        *sources: str | os.PathLike[str],
        mesh_config: str | None = None,
        strict: bool = True,
    ) -> Mesh:
        """Add files, folders or YAML to the mesh; an object of the same kind and name is replaced.

        Returns when every proxy has the configuration. ``mesh_config`` is the YAML of a MeshConfig. Raises
        WrongConfiguration for errors in the YAML (``strict=False`` leaves the wrong objects out, as istiod does),
        Rejection when a proxy refuses what was made of it.
        """
        __tracebackhide__ = True
        if mesh_config is not None:
            self._mesh_config = mesh_config
        fresh: list[RawObject] = []
        for source in sources:
            for text, name in self._session.sources.read(source, self._folder):
                found, wrong = self._session.sources.parse(text, name)
                fresh += found
                self._unread += wrong
        replaced = {_identity(raw) for raw in fresh}
        self._raws = [raw for raw in self._raws if _identity(raw) not in replaced] + fresh
        self._update(strict)
        return self

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """Take an object away. Raises KeyError when there is none."""
        kept = [raw for raw in self._raws if _identity(raw) != (kind, namespace, name)]
        if len(kept) == len(self._raws):
            raise KeyError(f"no {kind} {namespace}/{name} was applied")
        self._raws = kept
        self._update(strict=True)

    def _update(self, strict: bool) -> None:
        __tracebackhide__ = True
        rig = self._start()
        objects = self._complete(rig)
        if objects.mesh.trust_domain != rig.control.trust_domain:
            rig = self._rig = self._session.rig(objects.mesh.trust_domain)
            objects = self._complete(rig)
        errors = [f for f in (*self._unread, *objects.findings) if f.level is Level.ERROR]
        if errors and strict:
            raise WrongConfiguration(errors)
        self.objects = objects
        rig.apply(objects)

    def _start(self) -> Rig:
        if self._rig is None or self._rig is not self._session.started:
            started = self._session.started
            self._rig = started if started is not None else self._session.rig("cluster.local")
        return self._rig

    def _complete(self, rig: Rig) -> OfflineMesh:
        return complete(
            self._raws,
            rig.plan(),
            mesh_config=self._mesh_config,
            read=self._session.sources.decode,
        )

    @property
    def findings(self) -> list[Finding]:
        """All that is wrong or doubtful: of the YAML, and of what proxies were to be told."""
        rig = self._running()
        found = [*self._unread, *self.objects.findings]
        for proxy in self.objects.proxies:
            ir = rig.ir_of(proxy.id) if proxy.injected else None
            found += ir.findings if ir is not None else ()
        return list(dict.fromkeys(found))

    def _running(self) -> Rig:
        if self._rig is None:
            raise RuntimeError("nothing is applied yet: call mesh.apply(...) first")
        return self._rig

    # --- clients ------------------------------------------------------------------------------------

    def client(self, workload: str, namespace: str | None = None) -> Client:
        """A workload (or one of its pods) as a client, through its sidecar. Raises LookupError."""
        return self._client(self._find(workload, namespace))

    def gateway(self, name: str = "ingressgateway", namespace: str | None = None) -> Client:
        """A visitor of a gateway, outside the mesh: URLs name the host and the gateway's port. Raises LookupError."""
        names = (name, name.removeprefix("istio-"), f"istio-{name}")
        routers = [proxy for proxy in self.objects.proxies if proxy.router]
        for proxy in routers:
            known = (proxy.workload, proxy.name, proxy.labels.get("istio", ""))
            if any(entry in names for entry in known) and namespace in (None, proxy.namespace):
                return self._client(proxy, gateway=True)
        there = ", ".join(sorted({proxy.workload for proxy in routers})) or "none"
        raise LookupError(f"no gateway {name!r}; there are: {there}")

    @property
    def outside(self) -> Client:
        """A client outside the mesh: no sidecar, no certificate; connects to pods as kube-proxy would."""
        return self._client(None)

    def _client(self, proxy: OfflineProxy | None, *, gateway: bool = False) -> Client:
        rig = self._running()
        explanations = Explanations(rig, self._session.sources)
        return Client(rig, explanations, self.history.append, proxy, gateway=gateway)

    def _find(self, workload: str, namespace: str | None) -> OfflineProxy:
        if namespace is None and "." in workload:
            name, _, space = workload.rpartition(".")
            if any(proxy.namespace == space for proxy in self.objects.proxies):
                workload, namespace = name, space
        found = [
            proxy
            for proxy in self.objects.proxies
            if workload in (proxy.workload, proxy.name) and namespace in (None, proxy.namespace)
        ]
        if not found:
            there = sorted({f"{p.workload}.{p.namespace}" for p in self.objects.proxies})
            raise LookupError(f"no workload {workload!r}; there are: {', '.join(there) or 'none'}")
        spaces = {proxy.namespace for proxy in found}
        if len(spaces) > 1:
            raise LookupError(f"{workload!r} is in {', '.join(sorted(spaces))}: say namespace=...")
        return found[0]

    # --- applications -------------------------------------------------------------------------------

    def fail(
        self,
        workload: str,
        *,
        status: int = 0,
        delay: float = 0.0,
        reset: bool = False,
        grpc_status: int = 0,
        headers: Mapping[str, str] | None = None,
        share: float = 1.0,
        times: int = 0,
    ) -> Failure:
        """Let a stand-in answer with ``status``, late (seconds), or with a reset: always, a share of the time, or ``times`` times."""
        rig = self._running()
        trouble = Trouble(status, delay, reset, grpc_status, dict(headers or {}), share, times)
        rig.on_loop(lambda: rig.standins.troubles.set(workload, trouble))
        return Failure(self, workload)

    def heal(self, workload: str) -> None:
        """End ``fail``."""
        rig = self._running()
        rig.on_loop(lambda: rig.standins.troubles.set(workload, None))

    def received(self, workload: str = "") -> list[Received]:
        """What reached the stand-ins in this test: mirrored requests, retries, everything."""
        rig = self._running()
        found = rig.on_loop(lambda: list(rig.standins.received))
        return [entry for entry in found if workload in ("", entry.who.workload, entry.who.pod)]

    def run(
        self, workload: str, command: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Run a program of yours as a workload, instead of its stand-in.

        ``{address}`` and ``{port}`` in the command, or ADDRESS and PORT in its environment, tell where to listen. Returns
        when it does. Ends with the test.
        """
        rig = self._running()
        if self._commands is None:
            self._commands = OwnCommands(rig)
        return self._commands.run(self._find(workload, None), command, env or {})

    # --- certificates -------------------------------------------------------------------------------

    def certificate(self, *names: str) -> tuple[str, str, str]:
        """(chain, key, root) in PEM for DNS names, signed by an authority outside the mesh."""
        return self._start().identities.pair(*names)

    def tls_secret(
        self, name: str, *hosts: str, namespace: str = "istio-system", ca: bool = False
    ) -> str:
        """The YAML of a TLS Secret for hosts; with ``ca``, also the root for verifying clients."""
        chain, key, root = self.certificate(*hosts)
        data = {"tls.crt": chain, "tls.key": key} | ({"ca.crt": root} if ca else {})
        lines = "".join(
            f"  {name}: {base64.b64encode(text.encode()).decode()}\n" for name, text in data.items()
        )
        return (
            f"---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\n"
            f"metadata: {{name: {name}, namespace: {namespace}}}\ndata:\n{lines}"
        )

    # --- looking closer -----------------------------------------------------------------------------

    def stats(self, workload: str, pattern: str = "") -> dict[str, int]:
        """Envoy's own counters and gauges of a workload's proxy whose names match a regular expression."""
        rig = self._running()
        running = rig.running[self._find(workload, None).id]
        text = rig.call(running.admin(f"/stats?filter={pattern}")).decode()
        found = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdecimal():
                found[name] = int(value)
        return found

    def config(self, workload: str) -> Any:
        """What a workload's Envoy says that it has: its whole configuration, as JSON. Certificates are redacted by it."""
        rig = self._running()
        running = rig.running[self._find(workload, None).id]
        return json.loads(rig.call(running.admin("/config_dump")))

    def explain(self, count: int = 3) -> str:
        """The way of the last requests, newest last."""
        return "\n\n".join(exchange.explain() for exchange in list(self.history)[-count:])

    def end(self) -> None:
        """The test is over: all is well again; what was applied goes with the next test's configuration."""
        if self._commands is not None:
            self._commands.close()
        rig = self._rig
        if rig is not None and rig is self._session.started:
            rig.on_loop(rig.standins.troubles.clear)
            rig.on_loop(rig.standins.received.clear)


def _identity(raw: RawObject) -> tuple[str, str, str]:
    cluster_scoped = raw.kind in ("Namespace", "Node", "IngressClass")
    return raw.kind, "" if cluster_scoped else raw.namespace or "default", raw.name


__all__ = ["Client", "Mesh", "Session", "TlsOptions", "WrongConfiguration"]
