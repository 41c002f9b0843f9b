"""Small constructors that every builder needs: Any, Duration, wrappers, named extensions."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, duration_pb2, struct_pb2, wrappers_pb2

from meltemi.model.names import XDS


def pack(message: Any) -> any_pb2.Any:
    """``message`` in an Any, with deterministic bytes (maps sorted)."""
    return any_pb2.Any(
        type_url=XDS + message.DESCRIPTOR.full_name,
        value=message.SerializeToString(deterministic=True),
    )


def duration(seconds: float) -> duration_pb2.Duration:
    """A Duration, rounded to the nanosecond."""
    whole = round(seconds * 1_000_000_000)
    return duration_pb2.Duration(seconds=whole // 1_000_000_000, nanos=whole % 1_000_000_000)


def maybe_duration(seconds: float | None) -> duration_pb2.Duration | None:
    """A Duration or nothing."""
    return None if seconds is None else duration(seconds)


def uint32(number: int | None) -> wrappers_pb2.UInt32Value | None:
    """A UInt32Value or nothing."""
    return None if number is None else wrappers_pb2.UInt32Value(value=number)


def boolean(flag: bool | None) -> wrappers_pb2.BoolValue | None:
    """A BoolValue or nothing."""
    return None if flag is None else wrappers_pb2.BoolValue(value=flag)


def struct(fields: dict[str, Any]) -> struct_pb2.Struct:
    """A Struct from JSON-like data."""
    made = struct_pb2.Struct()
    made.update(fields)
    return made
