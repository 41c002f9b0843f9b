"""IR values as plain data, for people: golden files, diffs, debug output. Secrets' contents never appear.

Fields at their defaults are left out; origins become one string each.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from meltemi.model.config import Key
from meltemi.model.origin import Origin

_HIDDEN = ("chain", "key", "ca", "crl")


def render(value: Any, *, origins: bool = True) -> Any:
    """Plain dicts, lists and scalars. ``origins`` False leaves the origins out."""
    if isinstance(value, Origin | Key):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, origins)
    if isinstance(value, Mapping):
        return {str(key): render(entry, origins=origins) for key, entry in sorted(value.items())}
    if isinstance(value, tuple | list | frozenset):
        entries = sorted(value, key=repr) if isinstance(value, frozenset) else value
        return [render(entry, origins=origins) for entry in entries]
    if isinstance(value, bytes):
        return f"[{len(value)} bytes]"
    return value


def _fields(value: Any, origins: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kind = type(value).__name__
    if kind in _KINDS:
        found["kind"] = kind
    for entry in dataclasses.fields(value):
        content = getattr(value, entry.name)
        if entry.name == "origins":
            if origins and content:
                found["origins"] = [str(origin) for origin in content]
            continue
        if content == _default(entry):
            continue
        if kind == "Secret" and entry.name in _HIDDEN:
            found[entry.name] = "[redacted]"
            continue
        found[entry.name] = render(content, origins=origins)
    return found


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return dataclasses.MISSING


# Members of unions name their kind.
_KINDS = frozenset(
    {
        "HttpManager",
        "TcpProxy",
        "PeerFromCertificate",
        "SniCluster",
        "ResolveSni",
        "ResolveName",
        "SendPeer",
        "ReceivePeer",
        "MeshAlpn",
        "FaultFilter",
        "CorsFilter",
        "Router",
        "JwtAuthn",
        "Rbac",
        "ExtAuthz",
        "PeerName",
        "Address",
        "DestinationPort",
        "ServerName",
        "Header",
        "Path",
        "Metadata",
        "Not",
        "All",
        "AnyOf",
        "Forward",
        "Redirect",
        "DirectResponse",
        "StandardStats",
        "FileLog",
        "GrpcLog",
    }
)
