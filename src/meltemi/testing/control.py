"""The control plane of the rig: istiod's own world, pipeline and discovery server, on a Unix socket.

In: an ``OfflineMesh``. Out: every proxy configured. The only differences from istiod: resources pass through
``rewire``, pushes happen when a test applies something instead of after a quiet time, and callers are identified
by a header, which is sound because only this user can open the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.service.accesslog.v3 import als_pb2

from meltemi.adapters.authenticate import Authenticator
from meltemi.adapters.discovery_connections import Connection
from meltemi.adapters.discovery_grpc import DiscoveryServer
from meltemi.adapters.grpc_server import GrpcServer
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.pipeline import Attached, ClassView, Pipeline
from meltemi.adapters.world import Change, World
from meltemi.agent.bootstrap import build_node
from meltemi.agent.offline import offline_settings
from meltemi.ca.identity import Identity, NotAuthenticated
from meltemi.discovery.node import proxy_from_node
from meltemi.discovery.protocol import Snapshot
from meltemi.discovery.watch import State
from meltemi.envoy.patch_bootstrap import bootstrap_patches
from meltemi.envoy.patch_edit import PatchRecord
from meltemi.ir.proxy import ProxyIR
from meltemi.kit.clock import SystemClock
from meltemi.model import kubernetes as k8s
from meltemi.model.config import AnyConfig, Key
from meltemi.model.names import CDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE, parse_spiffe
from meltemi.model.proxy import Proxy
from meltemi.model.resource import Resource, resource_of
from meltemi.push import class_key
from meltemi.push.queue import PushRequest
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.offline import OfflineMesh, OfflineProxy
from meltemi.testing.identities import Identities
from meltemi.testing.proxies import EPOCH, IDENTITY_HEADER
from meltemi.testing.rewire import Place, Rewire, Rewired
from meltemi.translate import translate

NATIVE_KINDS = ("Namespace", "Node", "Service", "Pod", "EndpointSlice", "Secret")
ALS_SERVICE = "envoy.service.accesslog.v3.AccessLogService"


class Rejection(Exception):
    """A proxy refused configuration; the text says which and why."""


class LocalAuthenticator(Authenticator):
    """Takes the identity that the rig wrote into the proxy's bootstrap."""

    def is_encrypted(self, context: Any) -> bool:
        """As good as: the socket is in a folder of this user alone."""
        return True

    async def identify(self, context: Any) -> Identity:
        """The identity of the header."""
        for name, value in context.invocation_metadata() or ():
            if name == IDENTITY_HEADER and (parts := parse_spiffe(str(value))):
                return Identity(*parts, "certificate")
        raise NotAuthenticated("not a proxy of this session")


class RigPipeline(Pipeline):
    """The pipeline, with resources changed for the rig and pushes on demand."""

    def __init__(
        self, world: World, rewire: Rewire, identities: Identities, metrics: Metrics
    ) -> None:
        super().__init__(
            world,
            SystemClock(),
            metrics,
            debounce_after_s=0.0,
            debounce_max_s=0.0,
            debounce_endpoints=False,
            expects_pods=False,
        )
        self.places: dict[str, Place] = {}
        self.epochs: dict[str, int] = {}
        self._rewire = rewire
        self._identities = identities
        self._rewired: dict[tuple[str, str], Rewired] = {}
        self._extended: dict[
            tuple[str, str], tuple[Mapping[str, Resource], int, Mapping[str, Resource]]
        ] = {}

    async def flush(self) -> None:
        """Push what has changed; every connection has been told when this returns."""
        while self._next_due() is not None:
            await self._push_due()

    async def refresh(self, proxies: Iterable[str]) -> None:
        """Bring these level: their pods came back, so they missed pushes."""
        chosen = [a for a in self._attached.values() if a.connection.proxy.id in set(proxies)]
        for attached in chosen:
            attached.connection.proxy = self._refined(attached.connection.proxy)
        await self._attach(chosen)
        for attached in chosen:
            if attached.view is not None:
                attached.connection.offer(self._snapshot(attached, attached.view), None, 0.0)
        await self.connections.wake(a.connection for a in chosen)

    async def advance(self, connection: Connection) -> int:
        """Give a proxy's probe listener a new number, behind everything that it was sent before."""
        attached = self._attached.get(connection.id)
        proxy = connection.proxy.id
        self.epochs[proxy] = self.epochs.get(proxy, 0) + 1
        if attached is not None and attached.view is not None:
            only = {RDS_TYPE: frozenset({EPOCH})}
            connection.offer(self._snapshot(attached, attached.view), only, 0.0)
            await self.connections.wake([connection])
        return self.epochs[proxy]

    def ir_of(self, proxy: str) -> ProxyIR | None:
        """What a proxy was told, before its encoding."""
        connection = self.connections.of_proxy(proxy)
        view = self.view_of(connection) if connection is not None else None
        return view.ir if view is not None else None

    def ir_for(self, proxy: Proxy) -> ProxyIR:
        """What a proxy would be told if it asked now."""
        assert self.context is not None
        return translate(self.context, class_key(self.context, self._refined(proxy)))

    def unbound_listeners(self, proxy: str) -> list[tuple[str, int]]:
        """Addresses and ports of a proxy's listeners that are not bound; EnvoyFilters may have added or removed some."""
        connection = self.connections.of_proxy(proxy)
        view = self.view_of(connection) if connection is not None else None
        if connection is None or view is None:
            return []
        own = connection.proxy.addresses
        if not any(patch.apply_to == "LISTENER" for patch in view.ir.patches):
            return [
                (entry.address, entry.port)
                for entry in view.ir.listeners
                if not entry.bind_to_port and entry.pod_only not in own
            ]
        hidden = {entry.name for entry in view.ir.listeners if entry.pod_only in own}
        made = (listener_pb2.Listener.FromString(r.body) for r in view.types[LDS_TYPE].values())
        return [
            (entry.address.socket_address.address, entry.address.socket_address.port_value)
            for entry in made
            if entry.HasField("bind_to_port")
            and not entry.bind_to_port.value
            and entry.name not in hidden
        ]

    def _concerned(self, request: PushRequest) -> list[Attached]:
        return [
            attached
            for attached in super()._concerned(request)
            if attached.connection.proxy.id in self.places
        ]

    async def joined(self, connection: Connection) -> Snapshot:
        """See ``Pipeline``."""
        self._built_once()
        return await super().joined(connection)

    def _built_once(self) -> None:
        assert self.started, "the rig starts proxies after its first configuration"

    def left(self, connection: Connection) -> None:
        """See ``Pipeline``."""
        super().left(connection)
        for key in [key for key in self._rewired if key[0] == connection.id]:
            del self._rewired[key]
        for key in [key for key in self._extended if key[0] == connection.id]:
            del self._extended[key]

    def _snapshot(self, attached: Attached, view: ClassView) -> Snapshot:
        made = super()._snapshot(attached, view)
        place = self.places.get(attached.connection.proxy.id)
        if place is None:
            return made
        types = {
            type_url: self._changed(attached.connection.id, type_url, mapping, place)
            for type_url, mapping in made.types.items()
        }
        connection = attached.connection
        epoch = self.epochs.get(connection.proxy.id, 0)
        types[RDS_TYPE] = self._with(
            connection,
            made.types[RDS_TYPE],
            (RDS_TYPE, epoch),
            lambda: {EPOCH: _epoch_routes(epoch)},
        )
        if connection.identity is not None:
            spiffe, mesh = connection.identity.spiffe, self.world.mesh
            types[SDS_TYPE] = self._with(
                connection,
                made.types[SDS_TYPE],
                (SDS_TYPE, hash((mesh.ca_certificates, mesh.default_config.ca_certificates_pem))),
                lambda: self._identities.workload(spiffe, mesh, _own_roots(connection.proxy)),
            )
        return Snapshot(made.version, types)

    def _changed(
        self, connection: str, type_url: str, mapping: Mapping[str, Resource], place: Place
    ) -> Mapping[str, Resource]:
        key = (connection, type_url)
        known = self._rewired.get(key)
        # An overlay leaves listeners out of what may already be a rewired mapping.
        source = mapping.source if isinstance(mapping, Rewired) else mapping
        if known is None or known.source is not source or known.place != place:
            known = Rewired(source, type_url, place, self._rewire)
            self._rewired[key] = known
        return known

    def _with(
        self,
        connection: Connection,
        mapping: Mapping[str, Resource],
        key: tuple[str, int],
        more: Callable[[], Mapping[str, Resource]],
    ) -> Mapping[str, Resource]:
        """The mapping and some of the rig's own resources; the same object while neither changed."""
        known = self._extended.get((connection.id, key[0]))
        if known is None or known[0] is not mapping or known[1] != key[1]:
            known = (mapping, key[1], {**mapping, **more()})
            self._extended[connection.id, key[0]] = known
        return known[2]


def _own_roots(proxy: Proxy) -> tuple[str, ...]:
    """What the agent would add to the mesh's roots, by the proxy's own settings."""
    settings = proxy.metadata.get("PROXY_CONFIG")
    found = settings.get("caCertificatesPem") if isinstance(settings, Mapping) else None
    return tuple(str(text) for text in found) if isinstance(found, list | tuple) else ()


def _epoch_routes(epoch: int) -> Resource:
    host = route_components_pb2.VirtualHost(name=EPOCH, domains=["*"])
    route = host.routes.add()
    route.match.prefix = "/"
    route.direct_response.status = 200
    route.direct_response.body.inline_string = str(epoch)
    made = route_pb2.RouteConfiguration(name=EPOCH, virtual_hosts=[host])
    return resource_of(EPOCH, made.SerializeToString(deterministic=True))


class _Source:
    """What the discovery server asks: the pipeline, and no debug pages."""

    def __init__(self, pipeline: RigPipeline) -> None:
        self.joined = pipeline.joined
        self.left = pipeline.left
        self.rejected = pipeline.rejected

    def health(self, connection: Connection, problem: str | None) -> None:
        """No stand-in is probed."""

    async def debug(self, request: str) -> bytes:
        """There are none."""
        return b"{}"


class Control:
    """World, pipeline and servers. Lives in one event loop."""

    def __init__(
        self, rewire: Rewire, identities: Identities, socket: Path, trust_domain: str
    ) -> None:
        self.trust_domain = trust_domain
        metrics = Metrics()
        self.world = World(RegistrySettings(trust_domain=trust_domain))
        self.pipeline = RigPipeline(self.world, rewire, identities, metrics)
        self.world.listener = self.pipeline.changed
        authenticator = LocalAuthenticator(None, lambda: (trust_domain,))
        discovery = DiscoveryServer(
            _Source(self.pipeline),
            authenticator,
            metrics,
            SystemClock(),
            None,
            self.pipeline.connections,
        )
        self.on_log: Callable[[str, Any], None] = lambda name, entry: None
        self._server = GrpcServer([discovery.handlers(), self._log_handlers()])
        self._server.listen("rig", f"unix:{socket}")
        self._sources: dict[Key, AnyConfig] = {}

    async def start(self) -> None:
        """Serve."""
        await self._server.start()

    async def stop(self) -> None:
        """End every stream."""
        await self._server.stop(0)
        self.pipeline.close()

    def put(self, objects: OfflineMesh) -> None:
        """Make the world what the objects say; what is equal stays as it is."""
        world = self.world
        world.set_mesh(objects.mesh)
        by_kind: dict[str, dict[tuple[str, str], k8s.K8s]] = {kind: {} for kind in NATIVE_KINDS}
        for key, value in objects.natives.items():
            if key.kind in by_kind:
                by_kind[key.kind][key.namespace, key.name] = value
        for kind, values in by_kind.items():
            world.replace_native(kind, values)
        kinds = {key.kind for key in (*world.configs, *objects.configs)}
        for kind in sorted(kinds):
            configs = {
                (key.namespace, key.name): (config, ())
                for key, config in objects.configs.items()
                if key.kind == kind
            }
            world.replace_configs(kind, configs)
        self._note_sources(objects)
        if not self.pipeline.started:
            self.pipeline.start()

    def _note_sources(self, objects: OfflineMesh) -> None:
        """Equal objects from other lines are pushed too: explanations must name the lines of this test."""
        moved = frozenset(
            key
            for key, config in objects.configs.items()
            if (known := self._sources.get(key)) is not None
            and known == config
            and known.source_map.lines is not config.source_map.lines
            and known.origin() != config.origin()
        )
        self._sources = dict(objects.configs)
        if moved:
            self.pipeline.changed(Change(moved))

    def bootstrap_patches(self, proxy: OfflineProxy) -> tuple[Resource, ...]:
        """What the proxy's agent would be told to change in its start configuration, if it asks."""
        settings = offline_settings(proxy, self.trust_domain)
        if not settings.bootstrap_xds:
            return ()
        node = build_node(settings)
        ir = self.pipeline.ir_for(proxy_from_node(node["id"], node["metadata"], ""))
        return bootstrap_patches(ir, PatchRecord())

    def synced(self, proxy: str) -> Connection | None:
        """The proxy's connection once it has acknowledged everything. Raises Rejection."""
        connection = self.pipeline.connections.of_proxy(proxy)
        if connection is None or connection.pending is not None or connection.wake.is_set():
            return None
        watches = connection.stream.watches
        if CDS_TYPE not in watches or LDS_TYPE not in watches:
            return None
        states = [watch.state for watch in watches.values()]
        if State.REJECTED in states:
            raise Rejection(self._describe(connection))
        # A type whose names do not exist yet stays quiet.
        return connection if State.WAITING not in states else None

    def mark(self, connection: Connection) -> tuple[str, ...]:
        """Changes whenever the proxy was sent something."""
        watches = connection.stream.watches.values()
        return (connection.id, *(watch.last_nonce for watch in watches))

    def _describe(self, connection: Connection) -> str:
        lines = [f"the proxy of {connection.proxy.id} refuses its configuration:"]
        for url, event in connection.rejections.items():
            if connection.stream.watches[url].state is not State.REJECTED:
                continue
            lines.append(f"  {url.rpartition('.')[2]}: {event.message}")
            told = self.pipeline.rejected(connection, event)
            found = told.get("origins")
            if isinstance(found, list):
                lines += [f"    from {origin}" for origin in found]
        return "\n".join(lines)

    # --- access logs of TCP connections -------------------------------------------------------------

    def _log_handlers(self) -> grpc.GenericRpcHandler:
        method = grpc.stream_unary_rpc_method_handler(
            self._take_logs,
            request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
            response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(ALS_SERVICE, {"StreamAccessLogs": method})

    async def _take_logs(self, messages: Any, context: Any) -> Any:
        name = ""
        async for message in messages:
            if message.HasField("identifier"):
                name = message.identifier.log_name
            for entry in message.tcp_logs.log_entry:
                self.on_log(name, entry)
        return als_pb2.StreamAccessLogsResponse()


async def until(check: Callable[[], Any], deadline_s: float, what: Callable[[], str]) -> Any:
    """Poll until ``check`` gives something. Raises TimeoutError with a text for people."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    pause = 0.001
    while not (found := check()):
        if loop.time() > end:
            raise TimeoutError(what())
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.02)
    return found
