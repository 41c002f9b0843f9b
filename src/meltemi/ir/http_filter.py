"""HTTP filters, one value per kind. Their order is the order in a listener's tuple."""

from __future__ import annotations

from meltemi.ir.authorization import ExtAuthz, Rbac
from meltemi.ir.jwt import JwtAuthn
from meltemi.ir.value import value


@value
class SendPeer:
    """Tell the next proxy who we are (request headers)."""


@value
class ReceivePeer:
    """Take the peer's headers into metadata and off the request. ``trusted`` False only strips them."""

    trusted: bool


@value
class MeshAlpn:
    """Lets routes set the ALPN of upstream connections."""


@value
class GrpcWeb:
    """Turns gRPC-Web of browsers into gRPC."""


@value
class FaultFilter:
    """Runs the faults of routes."""


@value
class CorsFilter:
    """Runs the CORS policies of routes."""


@value
class ResolveName:
    """Resolves the authority of requests that go to a cluster of type BY_NAME."""


@value
class Router:
    """The last filter. ``quiet``: it adds no x-envoy headers."""

    quiet: bool = False


HttpFilter = (
    SendPeer
    | ReceivePeer
    | JwtAuthn
    | Rbac
    | ExtAuthz
    | MeshAlpn
    | GrpcWeb
    | FaultFilter
    | CorsFilter
    | ResolveName
    | Router
)
