"""Resources as protobuf's canonical JSON, ``Any`` with ``@type``.

In: a resource's type and bytes. Out: JSON-ready values. Promises that nothing is lost: the installed types are older than
the proxy in a few places (``_NEWER``), so those fields are described here, as the proxy itself describes them.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
# file -> (message path, field name, number, type, is repeated); types that start with "." are messages.
_NEWER: dict[str, tuple[tuple[str, str, int, str, bool], ...]] = {
    "envoy/extensions/access_loggers/stats/v3/stats.proto": (
        ("Config", "stats_scope", 6, ".envoy.type.v3.Scope", False),
    ),
    "envoy/extensions/http/injected_credentials/generic/v3/generic.proto": (
        ("Generic", "header_value_prefix", 3, "string", False),
    ),
    "envoy/extensions/formatter/cel/v3/cel.proto": (
        ("Cel", "cel_config", 1, ".envoy.config.core.v3.CelExpressionConfig", False),
    ),
    "envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto": (
        (
            "Config",
            "on_downstream_tls_handshake",
            2,
            ".envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue",
            True,
        ),
    ),
    "envoy/config/cluster/v3/circuit_breaker.proto": (
        (
            "CircuitBreakers.Thresholds.RetryBudget",
            "budget_interval",
            3,
            ".google.protobuf.Duration",
            False,
        ),
    ),
}
# Messages that the installed types lack altogether: file -> (package, dependencies, message, fields).
_NEW_FILES = {
    "envoy/type/v3/scope.proto": (
        "envoy.type.v3",
        ("google/protobuf/wrappers.proto",),
        "Scope",
        (
            ("max_counters", 1, ".google.protobuf.UInt32Value"),
            ("max_gauges", 2, ".google.protobuf.UInt32Value"),
            ("max_histograms", 3, ".google.protobuf.UInt32Value"),
            ("enable_eviction", 4, "bool"),
            ("prefix", 5, "string"),
            ("sharing_name", 6, "string"),
        ),
    ),
    "envoy/config/core/v3/cel.proto": (
        "envoy.config.core.v3",
        (),
        "CelExpressionConfig",
        (
            ("enable_string_conversion", 1, "bool"),
            ("enable_string_concat", 2, "bool"),
            ("enable_string_functions", 3, "bool"),
        ),
    ),
}
_NEEDS = {
    "envoy/extensions/access_loggers/stats/v3/stats.proto": ("envoy/type/v3/scope.proto",),
    "envoy/extensions/formatter/cel/v3/cel.proto": ("envoy/config/core/v3/cel.proto",),
    "envoy/config/cluster/v3/circuit_breaker.proto": ("google/protobuf/duration.proto",),
}
_SCALARS = {"bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING}


class _Pool:
    """The installed descriptors with what they lack; files are taken over when they are first needed."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._known: set[str] = set()

    def FindMessageTypeByName(self, name: str) -> Any:
        """The descriptor of a message, complete."""
        self._add(_installed_type(name).file.name)
        return self._pool.FindMessageTypeByName(name)

    def _add(self, name: str) -> None:
        if name in self._known:
            return
        self._known.add(name)
        made = descriptor_pb2.FileDescriptorProto()
        if name in _NEW_FILES and not _installed(name):
            _describe(made, name)
        else:
            descriptor_pool.Default().FindFileByName(name).CopyToProto(made)
            _extend(made)
        for dependency in made.dependency:
            self._add(dependency)
        self._pool.Add(made)


def _installed_type(name: str) -> Any:
    """The installed descriptor; modules of its package are imported when nobody has done so yet. Raises KeyError."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindMessageTypeByName(name)
    except KeyError:
        package = name.rpartition(".")[0]
        try:
            folder = importlib.import_module(package).__path__
        except (ImportError, AttributeError):
            raise KeyError(f"{name} is not installed") from None
        for module in pkgutil.iter_modules(folder):
            if module.name.endswith("_pb2"):
                importlib.import_module(f"{package}.{module.name}")
        return pool.FindMessageTypeByName(name)


def _installed(name: str) -> bool:
    try:
        descriptor_pool.Default().FindFileByName(name)
    except KeyError:
        return False
    return True


def _describe(made: descriptor_pb2.FileDescriptorProto, name: str) -> None:
    package, dependencies, message, fields = _NEW_FILES[name]
    made.name, made.package, made.syntax = name, package, "proto3"
    made.dependency.extend(dependencies)
    entry = made.message_type.add(name=message)
    for field, number, kind in fields:
        _add_field(entry, field, number, kind, False)


def _extend(made: descriptor_pb2.FileDescriptorProto) -> None:
    added = False
    for path, field, number, kind, repeated in _NEWER.get(made.name, ()):
        first, *rest = path.split(".")
        message = next(entry for entry in made.message_type if entry.name == first)
        for part in rest:
            message = next(entry for entry in message.nested_type if entry.name == part)
        if all(entry.number != number for entry in message.field):
            _add_field(message, field, number, kind, repeated)
            added = True
    if added:
        missing = [need for need in _NEEDS.get(made.name, ()) if need not in made.dependency]
        made.dependency.extend(missing)


def _add_field(
    message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str, repeated: bool
) -> None:
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    field.json_name = "".join(
        part if index == 0 else part.capitalize() for index, part in enumerate(name.split("_"))
    )
    if kind.startswith("."):
        field.type, field.type_name = _Field.TYPE_MESSAGE, kind
    else:
        field.type = _SCALARS[kind]


@lru_cache(maxsize=1)
def _pool() -> _Pool:
    return _Pool()


def message_of(type_url: str, body: bytes = b"") -> Any:
    """A message of the complete type, from its bytes. Raises KeyError for types that are not installed."""
    descriptor = _pool().FindMessageTypeByName(type_url.rpartition("/")[2])
    made = message_factory.GetMessageClass(descriptor)()
    made.ParseFromString(body)
    return made


def to_json(message: Any) -> dict[str, Any]:
    """A message of ``message_of`` as JSON-ready values."""
    pool: Any = _pool()
    return json_format.MessageToDict(message, descriptor_pool=pool)


def from_json(type_url: str, value: dict[str, Any]) -> bytes:
    """The bytes of ``to_json``'s result. Raises ``json_format.ParseError``."""
    made = message_of(type_url)
    pool: Any = _pool()
    json_format.ParseDict(value, made, descriptor_pool=pool)
    return bytes(made.SerializeToString(deterministic=True))
