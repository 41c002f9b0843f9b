"""Run the agent: the machines of ``agent`` connected to processes, files, sockets, clocks and signals.

In: ``ProxySettings``. Out: an Envoy that serves, and the exit code when it is over. Promises: certificates
before Envoy; one event at a time; every wait has a deadline; nothing runs between events (one look at the
token and root files at long intervals aside).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltemi.adapters.agent_bootstrap import BootstrapQuestion, ask_for_patches, refusal
from meltemi.adapters.agent_call import NO_KEY
from meltemi.adapters.agent_csr import CertificateRequest, request_certificate
from meltemi.adapters.agent_endpoints import AgentEndpoints
from meltemi.adapters.agent_files import (
    Credentials,
    CredentialStore,
    follow_roots,
    merge_roots,
    read_text,
    split_pem,
    write_atomically,
)
from meltemi.adapters.agent_http import HttpServer, fetch
from meltemi.adapters.envoy_process import missing_resource, signal_envoy, spawn_envoy
from meltemi.agent import certificates, secrets, supervision
from meltemi.agent.bootstrap import (
    XDS_LISTENER,
    build_arguments,
    build_bootstrap,
    build_environment,
    is_plaintext,
    server_name,
)
from meltemi.agent.health import Probe
from meltemi.agent.metrics import AgentCounters, DnsCounters, find_scrape_target
from meltemi.agent.readiness import count_connections
from meltemi.agent.settings import ProxySettings

if TYPE_CHECKING:
    from meltemi.adapters.agent_health import HealthWatch
    from meltemi.adapters.agent_pod_dns import PodDns

_TIMER_S_MAX = 600.0  # look at the wall clock again this often: it may jump, and machines may sleep
_ADMIN_S_MAX = 2.0

Log = Callable[[str, str], None]
Event = tuple[str, Any]


class AgentRuntime:
    """One proxy's agent. ``run`` is the whole life."""

    def __init__(self, settings: ProxySettings, binary: str, log: Log) -> None:
        """``binary`` is Envoy; ``log(level, text)`` takes lines for people."""
        self._settings, self._binary, self._log = settings, binary, log
        self._store = CredentialStore(settings.credentials_dir, settings.output_certs)
        self._config_dir = Path(settings.config_dir)
        self._credentials: Credentials | None = None
        self._lifecycle = certificates.Lifecycle(settings.grace_ratio, settings.grace_jitter)
        config = settings.config
        self._supervision = supervision.Supervision(
            supervision.DrainPlan(
                duration_s=config.termination_drain_s,
                on_zero_connections=settings.exit_on_zero_connections,
                minimum_s=settings.minimum_drain_s,
                maximum_s=max(config.drain_s, settings.minimum_drain_s),
                inbound_only=settings.node_type == "sidecar",
            )
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._exit_code: int | None = None
        self._counters = AgentCounters()
        self._began = time.monotonic()
        self._token = secrets.SecretText("")
        self._token_version = 0
        self._mesh_root = self._mesh_crl = ""
        self._dns: PodDns | None = None
        self._health: HealthWatch | None = None
        self._resolver_port = 0
        self._certificate_failed = False
        self._patched_text = ""

    # --- the life ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until stopped; the exit code.

        :raises OSError: when one of the agent's ports is taken or its directories cannot be written.
        """
        await self._start_dns()
        server = HttpServer(self._endpoints().handle)
        await server.start(self._settings.config.status_port)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self._refresh_token()
        self._credentials = self._store.load(self._settings.identity)
        found = self._credentials.validity if self._credentials else None
        self._put("certificates", certificates.Started(time.time(), _chance(), found))
        self._read_roots(self._credentials)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._spawn(self._watch_files())
                if self._dns is not None:
                    self._spawn(self._dns.follow(_chance))
                if self._settings.probe is not None:
                    self._health = self._watch_health(self._settings.probe)
                    self._spawn(self._health.run(_chance))
                await self._handle_events()
                self._cancel_all()
        finally:
            await server.close()
            await self._reap()
            if self._dns is not None:
                await self._dns.close()
        return self._exit_code or 0

    async def _start_dns(self) -> None:
        if not self._settings.dns_capture:
            return
        from meltemi.adapters.agent_pod_dns import PodDns

        self._counters.dns = DnsCounters()
        self._dns = PodDns(self._settings, self._counters.dns, self._log)
        self._resolver_port = await self._dns.start()

    def _watch_health(self, probe: Probe) -> HealthWatch:
        from meltemi.adapters.agent_health import HealthWatch

        return HealthWatch(self._settings, probe, self._log)

    def stop(self) -> None:
        """Drain and end."""
        self._put("supervision", supervision.StopRequested(time.monotonic()))

    def drain(self) -> None:
        """Drain without ending."""
        self._put("supervision", supervision.DrainRequested(time.monotonic()))

    def _put(self, machine: str, event: Any) -> None:
        self._events.put_nowait((machine, event))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel_all(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in [*self._tasks]:
            task.cancel()

    async def _reap(self) -> None:
        """Whatever went wrong, no Envoy stays behind."""
        if self._process and self._process.returncode is None:
            signal_envoy(self._process, kill=True)
            await self._process.wait()

    async def _handle_events(self) -> None:
        while self._exit_code is None:
            machine, event = await self._events.get()
            if machine == "certificates":
                self._lifecycle, wanted = self._lifecycle.step(event)
                for command in wanted:
                    self._do_certificates(command)
            else:
                self._supervision, orders = self._supervision.step(event)
                for order in orders:
                    await self._do_supervision(order)

    # --- certificates -----------------------------------------------------------------------------

    def _do_certificates(self, command: certificates.Command) -> None:
        if isinstance(command, certificates.RequestCertificate):
            self._spawn(self._request())
        elif isinstance(command, certificates.SetTimer):
            self._set_wall_timer(command.at)
        elif isinstance(command, certificates.AnnounceReady):
            self._put("supervision", supervision.CertificatesReady(time.monotonic()))
        else:
            self._log(command.level, command.text)

    def _set_wall_timer(self, at: float) -> None:
        def wake() -> None:
            if time.time() >= at:
                self._put("certificates", certificates.TimerFired(time.time()))
            else:
                self._set_wall_timer(at)

        delay_s = min(_TIMER_S_MAX, max(0.0, at - time.time()))
        self._set_timer("certificates", delay_s, wake)

    def _set_timer(self, name: str, delay_s: float, callback: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(delay_s, callback)

    async def _request(self) -> None:
        settings = self._settings
        # By the certificate while there is one, else by the token; each after the other has failed.
        call = self._call(settings.ca_address, by_certificate=not self._certificate_failed)
        self._counters.cert_requests += 1
        answer = await request_certificate(
            CertificateRequest(
                **call,
                identity=settings.identity,
                ttl_s=round(settings.secret_ttl_s),
                rsa_bits=settings.rsa_key_bits,
                curve=settings.key_curve,
                proxy=f"{settings.pod_name}.{settings.namespace}",
            )
        )
        error = answer.error
        self._certificate_failed = bool(error and call["certificate"])
        # Authorities date certificates back, for clocks that differ: a life begins when it is given.
        validity = certificates.Validity(max(answer.not_before, time.time()), answer.not_after)
        if not error:
            try:
                self._adopt(
                    Credentials(
                        certificate="".join(answer.chain[:-1]) or answer.chain[0],
                        key=answer.key,
                        roots=merge_roots(answer.chain[-1], self._mesh_root),
                        validity=validity,
                        identity=settings.identity,
                        crl=self._mesh_crl,
                    )
                )
            except OSError as problem:
                error = f"{settings.credentials_dir} cannot be written: {problem.strerror}"
        if error:
            self._counters.cert_failures += 1
            self._counters.cert_failures_in_row += 1
            failed = certificates.RequestFailed(time.time(), _chance(), error)
            self._put("certificates", failed)
            return
        self._counters.cert_failures_in_row = 0
        self._put("certificates", certificates.Issued(time.time(), _chance(), validity))

    def _call(self, address: str, *, by_certificate: bool = True) -> dict[str, Any]:
        """How a child reaches istiod at ``address``, or where certificates are taken, and how it proves who it is."""
        settings, held = self._settings, self._credentials
        shown = held if settings.mtls_address and by_certificate else None
        if shown is not None and shown.validity.not_after <= time.time():
            shown = None
        if shown is not None:
            address = settings.mtls_address
        return {
            "address": address,
            "server_name": server_name(settings, address),
            "plaintext": is_plaintext(settings, address),
            "root_file": settings.root_file,
            "token_file": settings.token_file if shown is None else "",
            "mark": settings.mark,
            "trusted": held.roots if held else "",
            "certificate": shown.certificate if shown is not None else "",
            "key": shown.key if shown is not None else NO_KEY,
        }

    def _adopt(self, credentials: Credentials) -> None:
        self._store.store(credentials)
        self._credentials = credentials
        self._counters.cert_not_after = credentials.validity.not_after

    # --- tokens and roots -------------------------------------------------------------------------

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(self._settings.file_watch_s)
            try:
                self._refresh_token()
                self._refresh_roots()
            except OSError as error:
                self._log("error", f"credentials cannot be refreshed: {error}")

    def _refresh_token(self) -> None:
        """Give Envoy the present token; kubelets rotate the file behind it."""
        token = secrets.SecretText(read_text(Path(self._settings.token_file)).strip())
        if token and token != self._token:
            self._token_version += 1
            text = secrets.render_xds_token(token, self._token_version)
            write_atomically(self._config_dir / secrets.XDS_TOKEN_FILE, text)
            self._token = token

    def _published_roots(self) -> str:
        """The mesh's roots, and behind them those that the proxy's own configuration adds; "" without the mesh's."""
        root = read_text(Path(self._settings.root_file))
        extra = self._settings.config.raw.get("caCertificatesPem")
        if not root or not isinstance(extra, list):
            return root
        # The mesh's text stays as it is: a line in front of its roots may ask for a renewal.
        return f"{root.rstrip()}\n{''.join(split_pem(' '.join(map(str, extra))))}"

    def _read_roots(self, kept: Credentials | None) -> None:
        """Start with the mesh's roots, or from those that an earlier run left: they may be from before a change."""
        self._mesh_root = self._published_roots()
        self._mesh_crl = read_text(Path(self._settings.crl_file))
        if kept:
            self._mesh_crl = kept.crl
            if split_pem(self._mesh_root) != split_pem(kept.roots):
                self._mesh_root = kept.roots
            self._refresh_roots()

    def _refresh_roots(self) -> None:
        """Trust the mesh's new roots, and nothing that it revoked, as soon as that is published.

        New roots are a reason to get a certificate under them.
        """
        root = self._published_roots()
        crl = read_text(Path(self._settings.crl_file))
        new_root, new_crl = bool(root) and root != self._mesh_root, crl != self._mesh_crl
        if not (new_root or new_crl):
            return
        self._mesh_root, self._mesh_crl = root or self._mesh_root, crl
        if not self._credentials:
            return
        roots = follow_roots(self._credentials.roots, self._mesh_root)
        self._adopt(replace(self._credentials, roots=roots, crl=crl))
        if new_crl:
            self._log("info", "the mesh's revocation lists changed")
        if new_root:
            self._log("info", "the mesh's root certificates changed")
            delay_s = _chance() * self._settings.file_watch_s
            self._put("certificates", certificates.RenewalForced(time.time(), delay_s))

    # --- Envoy ------------------------------------------------------------------------------------

    async def _do_supervision(self, command: supervision.Command) -> None:
        if isinstance(command, supervision.SpawnEnvoy):
            await self._start_envoy(command.epoch)
        elif isinstance(command, supervision.PostAdmin):
            await self._post(command.path)
        elif isinstance(command, supervision.CountConnections):
            active = await self._count()
            self._put("supervision", supervision.ConnectionsCounted(time.monotonic(), active))
        elif isinstance(command, supervision.SignalEnvoy):
            if self._process:
                signal_envoy(self._process, command.kill)
        elif isinstance(command, supervision.SetTimer):
            self._set_timer("supervision", max(0.0, command.at - time.monotonic()), self._tick)
        elif isinstance(command, supervision.ExitAgent):
            self._exit_code = command.code
        else:
            self._log(command.level, command.text)

    def _tick(self) -> None:
        self._put("supervision", supervision.TimerFired(time.monotonic()))

    async def _start_envoy(self, epoch: int) -> None:
        settings = self._settings
        if epoch:
            self._counters.envoy_restarts += 1
        try:
            environment = {**os.environ, **settings.config.proxy_metadata}
            environment.update(build_environment(settings))
            bootstrap = await self._write_bootstrap(environment)
            arguments = build_arguments(settings, bootstrap, self._override())
            self._process = await spawn_envoy(self._binary, arguments, environment)
        except OSError as error:
            self._log("error", f"Envoy cannot be started: {error}")
            self._put("supervision", supervision.EnvoyExited(time.monotonic(), 127, _chance()))
            return
        self._log("info", f"Envoy started (pid {self._process.pid}, epoch {epoch})")
        if not epoch:
            self._counters.startup_s = time.monotonic() - self._began
        self._spawn(self._wait(self._process))

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        if code == -signal.SIGABRT and (missing := missing_resource()):
            self._log("error", missing)
        self._put("supervision", supervision.EnvoyExited(time.monotonic(), code, _chance()))

    async def _write_bootstrap(self, environment: Mapping[str, str]) -> str:
        settings = self._settings
        if settings.config.custom_config_file:
            return settings.config.custom_config_file
        bootstrap, problems = build_bootstrap(
            settings, with_token=bool(self._token), resolver_port=self._resolver_port
        )
        for problem in problems:
            self._log("warning", problem)
        path = self._config_dir / "envoy-rev.json"
        text = json.dumps(bootstrap, indent=1)
        if settings.bootstrap_xds:
            text = await self._patched(bootstrap, environment) or text
        write_atomically(path, text, 0o644)
        return str(path)

    async def _patched(self, bootstrap: dict[str, Any], environment: Mapping[str, str]) -> str:
        """The bootstrap with istiod's patches; the last one that was good when istiod does not answer; "" without patches."""
        call = self._call(self._settings.config.discovery_address)
        if not self._token:
            call["token_file"] = ""
        answer = await ask_for_patches(BootstrapQuestion(**call, bootstrap=bootstrap))
        wrong = answer.error
        if answer.text:
            check = self._config_dir / "envoy-check.json"
            wrong = await refusal(self._binary, answer.text, check, environment)
        if wrong:
            instead = "as before" if self._patched_text else "without them"
            names = ", ".join(answer.patches) or "patches"
            text = f"bootstrap {names} cannot be had from istiod"
            if answer.patches:
                text = f"Envoy refuses the bootstrap with {names}"
            self._log("error", f"{text}: {wrong}; starting {instead}")
            return self._patched_text
        if answer.patches:
            self._log("info", f"bootstrap patched by {', '.join(answer.patches)}")
        self._patched_text = answer.text
        return answer.text

    def _override(self) -> str:
        path = self._settings.bootstrap_override
        if not path:
            return ""
        text = read_text(Path(path))
        if not text:
            self._log("warning", f"bootstrap override {path} is missing or empty; going without it")
        return text

    async def _post(self, path: str) -> None:
        try:
            port = self._settings.config.admin_port
            status, text = await fetch(port, "POST", path, timeout_s=_ADMIN_S_MAX)
            if status != 200:
                self._log("warning", f"Envoy answered {status} to {path}: {text.strip()}")
        except (OSError, TimeoutError) as error:
            self._log("warning", f"Envoy does not take {path}: {error or 'timeout'}")

    async def _count(self) -> int | None:
        settings = self._settings
        path = "/stats?filter=downstream_cx_active"
        try:
            _, text = await fetch(settings.config.admin_port, "GET", path, timeout_s=_ADMIN_S_MAX)
        except (OSError, TimeoutError):
            return None
        own = (f"_{settings.health_port}", f"_{settings.prometheus_port}", XDS_LISTENER)
        return count_connections(text, own)

    # --- port 15020 -------------------------------------------------------------------------------

    def _endpoints(self) -> AgentEndpoints:
        config = self._settings.config
        target, problem = find_scrape_target(self._settings.scrape, config.status_port)
        if problem:
            self._log("warning", problem)
        return AgentEndpoints(
            admin_port=config.admin_port,
            scrape=target,
            counters=self._counters,
            now=time.time,
            stop=self.stop,
            drain=self.drain,
            describe=self._describe,
            names=lambda: self._dns.describe() if self._dns is not None else {},
            warn=lambda text: self._log("warning", text),
        )

    def _describe(self) -> dict[str, Any]:
        validity = self._lifecycle.validity
        return {
            "node": self._settings.node_id,
            "identity": self._settings.identity,
            **({"health": self._health.describe()} if self._health is not None else {}),
            "discoveryAddress": self._settings.config.discovery_address,
            "envoy": {
                "phase": self._supervision.phase.value,
                "epoch": self._supervision.epoch,
                "pid": self._process.pid if self._process else None,
            },
            "certificate": {
                "notBefore": validity.not_before if validity else None,
                "notAfter": validity.not_after if validity else None,
                "failedRequests": self._lifecycle.failures,
            },
        }


def _chance() -> float:
    return random.random()  # noqa: S311 -- spreads retries; nothing secret depends on it
