"""Everything that one class of proxies shall do."""

from __future__ import annotations

from dataclasses import dataclass, field

from meltemi.ir.cluster import Cluster
from meltemi.ir.endpoint import EndpointNeed
from meltemi.ir.listener import Listener
from meltemi.ir.name_table import NameTable
from meltemi.ir.patch import Patch
from meltemi.ir.route import RouteConfig
from meltemi.ir.secret import Secret
from meltemi.model.origin import Finding


@dataclass(frozen=True)
class ProxyIR:
    """The whole configuration of a class: the input of the encoding, of explain and of diff.

    ``context`` says for EnvoyFilter whether this is a gateway.
    """

    listeners: tuple[Listener, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    secrets: tuple[Secret, ...] = ()
    endpoint_needs: tuple[EndpointNeed, ...] = ()
    patches: tuple[Patch, ...] = ()
    gateway: bool = False
    names: NameTable | None = None  # where DNS capture is on
    findings: tuple[Finding, ...] = field(default=(), compare=False)

    def needs(self) -> dict[str, EndpointNeed]:
        """Endpoint needs by cluster name."""
        return {need.cluster: need for need in self.endpoint_needs}
