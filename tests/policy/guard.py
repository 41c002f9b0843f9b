"""One workload behind a real Envoy, and callers with any identity, address, token and request.

The server's sidecar gets the configuration of its class; callers speak to its inbound listener themselves, over mTLS with a
certificate of any name, or in plaintext. The access log says which rule decided.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envoy_rig import Backend, Envoy, TcpBackend, fetch, wait_for
from meltemi.ir.authorization import Rbac
from meltemi.ir.listener import HttpManager
from meltemi.push.issuer_keys import NO_ISSUER_KEYS
from mesh_world import World, build_world, pod, service
from pki import Authority, make_authority, write_identity

DOMAIN = "cluster.local"
_CHOSEN = "%DYNAMIC_METADATA(envoy.filters.http.rbac:enforced_effective_policy_id)%"
_HINT = "%DYNAMIC_METADATA(envoy.common:access_log_hint)%"
_LOG = f"%REQ(X-CASE)%|%RESPONSE_CODE%|%RESPONSE_CODE_DETAILS%|{_CHOSEN}|{_HINT}|{{}}\\n"


@dataclass(frozen=True)
class Caller:
    """Who calls. ``account`` is ``namespace/name``; '' is plaintext. ``address`` is where the connection comes from."""

    account: str = "default/client"
    address: str = "127.0.0.1"
    domain: str = DOMAIN
    sni: str = ""

    @property
    def spiffe(self) -> str:
        """The identity in the certificate."""
        namespace, _, name = self.account.partition("/")
        return f"spiffe://{self.domain}/ns/{namespace}/sa/{name}"


PLAIN = Caller("")


@dataclass
class Verdict:
    """What came back. ``rule`` is Envoy's reason, ``line`` the line of YAML of the rule that decided, if one did,
    ``audited`` whether an AUDIT rule took it.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    rule: str = ""
    line: str = ""
    audited: bool = False

    @property
    def seen(self) -> dict[str, str]:
        """The headers that the application got."""
        found: dict[str, str] = json.loads(self.body)["headers"]
        return found


class Guard:
    """A server pod ``server`` with the ports http, tcp and auto (sniffed)."""

    def __init__(self, folder: Path, ip: str, authority: Authority | None = None) -> None:
        self.folder = folder
        self.ip = ip
        self.authority = authority or make_authority()
        self.http, self.tcp, self.auto = Backend("http"), TcpBackend("tcp"), Backend("auto")
        ports = (self.http.port, self.tcp.port, self.auto.port)
        self.envoy = Envoy(folder / "server", {"virtualInbound": [(ip, port) for port in ports]})
        write_identity(
            self.envoy.certificates, self.authority, f"spiffe://{DOMAIN}/ns/default/sa/server"
        )
        self._contexts: dict[tuple[str, tuple[str, ...]], ssl.SSLContext] = {}
        self._making = threading.Lock()
        self._cases = itertools.count(1)
        self.log = folder / "access.log"
        self.world: World
        self.issuer_keys = NO_ISSUER_KEYS

    def build(self, rules: str = "", mesh: str = "") -> World:
        """The mesh with these rules."""
        return build_world(
            service(
                "server",
                ("http", 9080, self.http.port),
                ("tcp", 9000, self.tcp.port),
                ("sniffed", 9100, self.auto.port),
            )
            + pod("server", self.ip, account="server")
            + rules,
            mesh=f"inboundTrafficPolicy: {{mode: LOCALHOST}}\naccessLogFile: {self.log}\n"
            # The number makes every configuration a new one, which Envoy says that it has.
            f'accessLogFormat: "{_LOG.format(next(self._cases))}"\n' + mesh,
            issuer_keys=self.issuer_keys,
        )

    def apply(self, rules: str = "", mesh: str = "", *, clean: bool = True) -> World:
        """Serve the mesh with these rules and wait until they hold."""
        self.world = self.build(rules, mesh)
        assert not clean or not self.world.findings, self.world.findings
        self.envoy.load(self.world.resources("server"), self.world.endpoints("server"))
        if self.envoy.process is None:
            self.envoy.start()
        wait_for(f"the new listeners\n{self.envoy.log()}", self._is_live)
        return self.world

    def _is_live(self) -> bool:
        assert not self.envoy.ads.nacks, self.envoy.ads.nacks
        assert self.envoy.process is not None
        assert self.envoy.process.poll() is None, self.envoy.log()
        dump = fetch(self.envoy.admin, "/config_dump").json
        listeners = next(c for c in dump["configs"] if "ListenersConfigDump" in c["@type"])
        warming = any("warming_state" in entry for entry in listeners["dynamic_listeners"])
        return not warming and listeners.get("version_info") == str(self.envoy.ads._version)

    def _tls(self, caller: Caller, alpn: tuple[str, ...]) -> ssl.SSLContext:
        with self._making:  # callers may be threads
            known = self._contexts.get((caller.spiffe, alpn))
            if known is None:
                chain, key = self.authority.issue(caller.spiffe)
                path = self.folder / f"caller-{len(self._contexts)}.pem"
                path.write_bytes(chain + key)
                known = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                known.check_hostname = False
                known.load_verify_locations(cadata=self.authority.root.decode())
                known.load_cert_chain(path)
                known.set_alpn_protocols(list(alpn))
                self._contexts[(caller.spiffe, alpn)] = known
            return known

    def connect(
        self, caller: Caller, port: int, alpn: tuple[str, ...] = ("istio-http/1.1", "istio")
    ) -> socket.socket:
        """A connection of this caller to a port of the workload."""
        raw = socket.create_connection((self.ip, port), 10, (caller.address, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not caller.account:
            return raw
        return self._tls(caller, alpn).wrap_socket(raw, server_hostname=caller.sni or None)

    def send(
        self,
        caller: Caller = Caller(),
        path: str = "/",
        *,
        method: str = "GET",
        host: str = "server",
        headers: Mapping[str, str] | tuple[tuple[str, str], ...] = (),
        token: str = "",
        port: int = 0,
        body: bytes = b"",
        why: bool = False,
    ) -> Verdict:
        """One HTTP request. ``why`` waits for the access log."""
        case = f"{next(self._cases)}"
        connection = http.client.HTTPConnection(self.ip, port or self.http.port, timeout=10)
        connection.sock = self.connect(caller, port or self.http.port)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host)
            connection.putheader("X-Case", case)
            connection.putheader("Connection", "close")
            if token:
                connection.putheader("Authorization", f"Bearer {token}")
            for name, text in headers.items() if isinstance(headers, Mapping) else headers:
                connection.putheader(name, text)
            if body:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            fields = {name.lower(): text for name, text in answer.getheaders()}
            verdict = Verdict(answer.status, answer.read(), fields)
        finally:
            connection.close()
        if why:
            parts = wait_for(f"case {case} in the access log", lambda: self._logged(case))
            verdict.rule, verdict.line = parts[2], self._line(parts[3])
            verdict.audited = parts[4] == "true"
        return verdict

    def _logged(self, case: str) -> list[str]:
        for line in self.log.read_text().splitlines():
            if line.startswith(f"{case}|"):
                return line.split("|")
        return []

    def _line(self, name: str) -> str:
        """Where the policy of this name in Envoy was written."""
        for listener in self.world.ir("server").listeners:
            for manager in (f for chain in listener.chains for f in chain.filters):
                for entry in manager.filters if isinstance(manager, HttpManager) else ():
                    if isinstance(entry, Rbac) and entry.rules is not None:
                        for rule in entry.rules.policies:
                            if rule.name == name:
                                return str(rule.origins[0])
        return ""

    def ask(
        self, caller: Caller = Caller(), line: bytes = b"hello there\n", port: int = 0
    ) -> bytes:
        """One line over TCP and the answer; empty when the connection was closed."""
        number = port or self.tcp.port
        try:
            with self.connect(caller, number, ("istio-peer-exchange", "istio")) as connection:
                connection.sendall(line)
                return connection.makefile("rb").readline()
        except (ConnectionError, ssl.SSLError):
            return b""

    def close(self) -> None:
        """Stop everything."""
        for part in (self.envoy, self.http, self.tcp, self.auto):
            part.close()


def policy(
    body: str, *, name: str = "p", namespace: str = "default", kind: str = "AuthorizationPolicy"
) -> str:
    """A policy as YAML; ``body`` is its spec in flow style or indented by two."""
    return f"""
---
apiVersion: security.istio.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  {body.strip()}
"""
