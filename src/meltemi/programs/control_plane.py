"""istiod: discovery, certificate authority, webhooks and status in one process.

Reads flags, constructs the parts, runs them until SIGTERM or SIGINT. The logic is elsewhere.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click
import structlog

from meltemi.adapters import kube_connection, mesh_gauges
from meltemi.adapters.authenticate import Authenticator, KubeReviewer, Reviewer
from meltemi.adapters.ca_external import ExternalAuthority, Signer
from meltemi.adapters.ca_grpc import CertificateServer
from meltemi.adapters.ca_kubernetes import KubernetesSigner, root_of_signer
from meltemi.adapters.ca_rotation import Conductor, Ledger, Sharer
from meltemi.adapters.ca_store import AuthorityStore, ServingCertificate, serving_names
from meltemi.adapters.debug_http import DebugHttp
from meltemi.adapters.debug_pages import DebugPages
from meltemi.adapters.discovery_grpc import DiscoveryServer, Limits
from meltemi.adapters.file_source import FileSource
from meltemi.adapters.grpc_server import GrpcServer, PortTaken, credentials
from meltemi.adapters.http_ports import HttpPorts
from meltemi.adapters.ingress_status import ingress_statuses
from meltemi.adapters.issuer_discovery import REFRESH_S, IssuerDiscovery
from meltemi.adapters.kube_api import KubeApi, collection
from meltemi.adapters.kube_publish import RootPublisher, WebhookPatcher
from meltemi.adapters.kube_source import KubeSource
from meltemi.adapters.kube_watch import Collection, WatchSession
from meltemi.adapters.leader import Leader
from meltemi.adapters.mesh_settings import MeshSettings, first_mesh
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.object_status import object_statuses
from meltemi.adapters.oidc import OidcReviewer, parse_rules
from meltemi.adapters.pipeline import Pipeline
from meltemi.adapters.registrar import Registrar
from meltemi.adapters.secret_access import SecretAccess
from meltemi.adapters.status_loop import StatusLoop
from meltemi.adapters.webhook_https import Webhooks, server_context, show
from meltemi.adapters.world import Change, World
from meltemi.ca import rotation, secrets
from meltemi.ca.extra_roots import with_extra_roots
from meltemi.kit import logs
from meltemi.kit.clock import SystemClock
from meltemi.kit.tasks import Tasks
from meltemi.model import kubernetes as k8s
from meltemi.model import names
from meltemi.model.mesh import MeshConfig
from meltemi.model.service import Resolution
from meltemi.programs.control_plane_options import Options, flags, options_from
from meltemi.programs.control_plane_parts import Parts, Source, every_address, publish_everywhere
from meltemi.push.issuer_keys import PROXIES_REFRESH_S, IssuerKeys
from meltemi.registry.from_kubernetes import RegistrySettings

VERSION = "0.1.0"
EDS = Resolution.CLIENT_SIDE_LB
T = TypeVar("T")
log = structlog.get_logger("istiod")


@dataclass(eq=False)
class ControlPlane:
    """One istiod. ``ports`` are known once ``ready`` is True; those of HTTP earlier."""

    options: Options
    connection: kube_connection.Connection | None = None
    clock: SystemClock = field(default_factory=SystemClock)
    metrics: Metrics = field(default_factory=lambda: Metrics(VERSION))
    ports: dict[str, int] = field(default_factory=dict)
    ready: bool = False
    pipeline: Pipeline | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, during the start too. Raises PortTaken."""
        started = self.clock.monotonic()
        async with AsyncExitStack() as stack:
            parts = await _unless(stop, self._start(stack, started))
            if parts is None:
                return
            log.info(
                "ready",
                version=VERSION,
                seconds=round(self.clock.monotonic() - started, 2),
                **self.ports,
            )
            await stop.wait()
            self.ready = False
            log.info("stopping", streams=len(parts.pipeline.connections))
            assert parts.discovery is not None
            await parts.discovery.close()
            await parts.discovery.drained(self.options.shutdown_s)

    async def _start(self, stack: AsyncExitStack, started: float) -> Parts:
        """Bring everything up, in the order in which parts need each other."""
        api = session = None
        if self.connection is not None:
            api = await stack.enter_async_context(KubeApi(self.connection, "istiod"))
            session = await stack.enter_async_context(WatchSession(self.connection))
        tasks = await stack.enter_async_context(Tasks("istiod"))
        http = HttpPorts()
        stack.push_async_callback(http.close)
        where = (self.options.namespace, f"istio{self.options.suffix}")
        mesh = await first_mesh(api, self.options.mesh_config, *where)
        parts = self._parts(mesh, api, http)
        stack.callback(parts.pipeline.close)
        await self._serve_debug(parts, started)
        source = self._sources(tasks, session, parts)
        await parts.store.start()
        await self._serve(stack, tasks, parts)
        if source is not None:
            await self._sync(source)
        parts.pipeline.start()
        refresh_s = self.options.keys_refresh_s or REFRESH_S
        issuers = IssuerDiscovery(parts.world, self.metrics, self.clock, refresh_s)
        parts.world.watchers.append(issuers.changed)
        tasks.spawn("issuers", issuers.run, restart=True)
        # Long-lived objects leave the collector's sight: its pauses would stall every stream.
        gc.collect()
        gc.freeze()
        self.ready = True
        if api is not None and source is not None:
            lease = f"istio-status-leader{self.options.suffix}"
            leader = Leader(api, self.clock, self.options.namespace, lease, self.options.pod)
            parts.registrar.leader = leader
            publisher = self._publish(tasks, api, source, parts.store, parts.world)
            self._rotate(tasks, api, publisher, leader, parts)
            self._write_status(tasks, api, source, parts, leader)
            tasks.spawn("leader", leader.run, restart=True)
        return parts

    def _parts(self, mesh: MeshConfig, api: KubeApi | None, http: HttpPorts) -> Parts:
        """Construct; nothing runs yet."""
        options, clock = self.options, self.clock
        settings = RegistrySettings(
            domain=options.domain, trust_domain=mesh.trust_domain, cluster_id=options.cluster_id
        )
        world = World(settings, mesh)
        pipeline = Pipeline(
            world,
            clock,
            self.metrics,
            debounce_after_s=options.debounce_after_s,
            debounce_max_s=options.debounce_max_s,
            debounce_endpoints=options.debounce_endpoints,
            expects_pods=api is not None,
        )
        world.listener = pipeline.changed
        world.issuer_keys = IssuerKeys(
            by_proxies=options.keys_by_proxies,
            refresh_s=options.keys_refresh_s or PROXIES_REFRESH_S,
        )
        self.pipeline = pipeline
        mesh_gauges.follow(self.metrics, pipeline)
        mesh_settings = MeshSettings(world, options.revision)
        return Parts(
            world=world,
            pipeline=pipeline,
            settings=mesh_settings,
            store=AuthorityStore(
                clock,
                mesh.trust_domain,
                options.namespace,
                api,
                options.cacerts,
                options.making,
            ),
            pages=DebugPages(pipeline, VERSION, lambda: mesh_settings.injection),
            http=http,
            reviewer=self._reviewer(api, mesh.trust_domain),
            ledger=Ledger(clock, lambda: [c.proxy for c in pipeline.connections]),
            registrar=Registrar(
                world,
                api,
                clock,
                self.metrics,
                options.pod,
                options.namespace,
                options.entry_grace_s,
            ),
            api=api,
        )

    def _reviewer(self, api: KubeApi | None, trust_domain: str) -> Reviewer | None:
        """Who verifies tokens: the API server, and the issuers of JWT_RULE."""
        kube = KubeReviewer(api, self.clock, trust_domain) if api is not None else None
        issuers = parse_rules(self.options.jwt_rule)
        return OidcReviewer(issuers, kube, self.clock, trust_domain) if issuers else kube

    def _external(self, stack: AsyncExitStack, parts: Parts) -> Signer | None:
        """Another authority that signs for workloads, if one is set."""
        options = self.options
        external: Signer
        if options.kubernetes_signer and parts.api is not None:
            external = KubernetesSigner(
                parts.api,
                options.kubernetes_signer,
                options.signer_domain,
                lambda signer: root_of_signer(parts.world.mesh, signer),
            )
        elif options.external_ca:
            external = ExternalAuthority(
                options.external_ca, options.external_ca_root, options.external_ca_token
            )
        elif (ca := parts.world.mesh.ca) is not None and ca.address:
            external = ExternalAuthority.of_mesh(ca, options.external_ca_token)
        else:
            return None
        stack.push_async_callback(external.close)
        return external

    async def _serve_debug(self, parts: Parts, started: float) -> None:
        """Readiness, debug pages and metrics come first: a start that waits can be looked at."""
        options = self.options
        debug = DebugHttp(
            parts.pages,
            self.metrics,
            lambda: self.ready,
            parts.reviewer,
            options.namespace,
            VERSION,
            lambda: self._refresh(parts.store, started),
        )
        await parts.http.listen("http", debug.main_application(), options.http)
        await parts.http.listen("monitoring", debug.monitoring_application(), options.monitoring)
        self.ports = dict(parts.http.ports)

    async def _serve(self, stack: AsyncExitStack, tasks: Tasks, parts: Parts) -> None:
        """xDS, certificates and webhooks."""
        options, clock, metrics, store = self.options, self.clock, self.metrics, parts.store
        trust_domain = parts.world.settings.trust_domain
        serving = ServingCertificate(
            store,
            clock,
            serving_names(options.namespace, options.revision),
            names.spiffe_id(trust_domain, options.namespace, "istiod"),
        )
        who = Authenticator(
            parts.reviewer,
            lambda: parts.world.mesh.trust_domains,
            self.options.trusted_gateways,
        )
        parts.discovery = DiscoveryServer(
            Source(parts.pipeline, parts.pages, parts.registrar),
            who,
            metrics,
            clock,
            Limits(
                options.streams_max,
                options.send_s,
                options.starts_per_s,
                options.authenticate_plaintext,
            ),
            parts.pipeline.connections,
            access=SecretAccess(parts.api, clock),
            namespace=options.namespace,
        )
        signer = CertificateServer(
            store.current,
            who,
            metrics,
            clock,
            default_ttl_s=options.workload_ttl_s,
            max_ttl_s=options.workload_ttl_max_s,
            note=parts.ledger.note,
            trusted_nodes=options.trusted_node_accounts,
            beside=parts.world.registry.accounts_beside,
            external=self._external(stack, parts),
        )
        stack.callback(signer.close)
        server = GrpcServer(
            [parts.discovery.handlers(), signer.handlers()],
            options.receive_max,
            options.streams_max,
        )
        by_token, by_certificate = (credentials(serving.current, need) for need in (False, True))
        server.listen("grpc", every_address(options.grpc))
        server.listen("secure-grpc", every_address(options.secure_grpc), by_token)
        server.listen("mtls-grpc", every_address(options.mtls_grpc), by_certificate)
        webhooks = Webhooks(
            parts.world, lambda: parts.settings.injection, metrics, clock, lambda: self.ready
        )
        tls = server_context(serving.current())
        serving.listen(lambda fresh: show(tls, fresh))
        await parts.http.listen("https", webhooks.application(), options.https, tls)
        tasks.spawn("authority", store.run, restart=True)
        tasks.spawn("serving certificate", serving.run, restart=True)
        tasks.spawn("push", parts.pipeline.run, restart=True)
        tasks.spawn("machines", parts.registrar.run, restart=True)
        await server.start()
        stack.push_async_callback(server.stop, min(1.0, options.shutdown_s))
        self.ports = {**parts.http.ports, **server.ports}

    def _sources(
        self, tasks: Tasks, session: WatchSession | None, parts: Parts
    ) -> KubeSource | None:
        """Start reading the world."""
        options, settings = self.options, parts.settings
        if options.config_dir is not None:
            files = FileSource(options.config_dir, parts.world)
            files.scan()
            tasks.spawn("files", files.run, restart=True)
        if session is None:
            tasks.spawn("mesh", lambda: settings.follow_file(options.mesh_config), restart=True)
            return None
        source = KubeSource(session, tasks, self.metrics)
        source.feed(parts.world)
        space, suffix = options.namespace, options.suffix
        source.config_map(space, f"istio{suffix}", settings.take_mesh)
        source.config_map(space, f"istio-sidecar-injector{suffix}", settings.take_injection)
        self.metrics.clusters.labels("local").set(1)
        return source

    async def _sync(self, source: KubeSource) -> None:
        while True:
            try:
                async with asyncio.timeout(10):
                    await source.synced()
                    return
            except TimeoutError:
                log.warning("still waiting for the API server", collections=source.waiting()[:5])

    def _publish(
        self, tasks: Tasks, api: KubeApi, source: KubeSource, store: AuthorityStore, world: World
    ) -> RootPublisher:
        """Tell the cluster which root to trust."""

        def roots() -> str:
            held = store.current()
            return held.roots if held else ""

        publisher = RootPublisher(api, lambda: with_extra_roots(store.published(), world.mesh))
        world.watchers.append(lambda change: publisher.all_changed() if change.everything else None)
        revoked = RootPublisher(api, store.revoked, secrets.CRL_CONFIG_MAP)
        for each in (publisher, revoked):
            publish_everywhere(tasks, source, each)
            store.listen(each.all_changed)
        for name in (secrets.SELF_SIGNED_SECRET, secrets.PLUGGED_SECRET, rotation.SECRET):
            source.secret(self.options.namespace, name, store)
        service = (self.options.namespace, f"istiod{self.options.suffix}")
        for plural, fail in (
            ("mutatingwebhookconfigurations", False),
            ("validatingwebhookconfigurations", True),
        ):
            patcher = WebhookPatcher(
                api, plural, service, roots, self.metrics, fail_when_ready=fail
            )
            path = collection("admissionregistration.k8s.io/v1", plural)
            source.watch(Collection(path), k8s.decode_object, patcher)
            store.listen(patcher.all_changed)
            tasks.spawn(f"patch {plural}", patcher.run, restart=True)
        return publisher

    def _rotate(
        self,
        tasks: Tasks,
        api: KubeApi,
        publisher: RootPublisher,
        leader: Leader,
        parts: Parts,
    ) -> None:
        """Share what proxies hold; the leader moves a rotation on."""
        store, ledger, options = parts.store, parts.ledger, self.options
        where = (options.namespace, options.pod)
        sharer = Sharer(api, store, ledger, *where)
        conductor = Conductor(
            api, store, ledger, publisher.pending, leader, self.clock, *where,
            pause_s=options.rotation_pause_s, settle_s=options.rotation_settle_s,
        )  # fmt: skip
        tasks.spawn("share", sharer.run, restart=True)
        tasks.spawn("rotation", conductor.run, restart=True)

    def _write_status(
        self, tasks: Tasks, api: KubeApi, source: KubeSource, parts: Parts, leader: Leader
    ) -> None:
        """The leader tells people in the objects' status what is wrong."""
        world, book = parts.world, source.statuses
        writer = StatusLoop(
            lambda: object_statuses(world, book, self.clock.now), api, leader, self.clock
        )
        addresses = StatusLoop(lambda: ingress_statuses(world), api, leader, self.clock)

        def changed(change: Change) -> None:
            parts.pipeline.changed(change)
            if change.keys or change.everything:
                writer.wake()

        world.listener = changed
        book.changed, world.ingresses.changed = writer.wake, addresses.wake
        writer.wake()
        addresses.wake()
        tasks.spawn("status", writer.run, restart=True)
        tasks.spawn("ingress status", addresses.run, restart=True)

    def _refresh(self, store: AuthorityStore, started: float) -> None:
        """Gauges that are computed when somebody looks."""
        self.metrics.uptime.set(self.clock.monotonic() - started)
        held = store.current()
        if held is not None:
            now = self.clock.now()
            self.metrics.root_expiry.set(held.root_expires)
            self.metrics.root_expiry_s.set(held.root_expires - now)
            self.metrics.chain_expiry.set(held.chain_expires)
            self.metrics.chain_expiry_s.set(held.chain_expires - now)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None when ``stop`` comes first, and ``work`` is cancelled."""
    stopped, done = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(work)
    try:
        await asyncio.wait((stopped, done), return_when=asyncio.FIRST_COMPLETED)
        return done.result() if done.done() else None
    finally:
        stopped.cancel()
        if not done.done():
            done.cancel()
            await asyncio.wait((done,))


async def _run(plane: ControlPlane) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await plane.run(stop)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def main() -> None:
    """The control plane of the mesh."""


@main.command()
@flags
def discovery(**given: Any) -> None:
    """Run istiod."""
    options = options_from(given, os.environ)
    try:
        logs.configure(options.log_level, options.log_json)
        connection = kube_connection.load(options.kubeconfig) if options.kubernetes else None
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        asyncio.run(_run(ControlPlane(options, connection)))
    except PortTaken as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
