"""Merging of EnvoyFilter values into messages: like protobuf's own merge, but Any by Any, and with replaced lists."""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2

from meltemi.envoy.anys import pack
from meltemi.kit.messages import message_for


def merge(base: Any, patch: Any, *, replace_lists: bool = False) -> None:
    """Merge ``patch`` into ``base`` in place.

    Scalars overwrite, messages merge, lists append (or replace), Any values of one type are merged inside.
    """
    for field, value in patch.ListFields():
        name = field.name
        if _is_map(field):
            _merge_map(getattr(base, name), value, field, replace_lists)
        elif _is_repeated(field):
            if replace_lists:
                base.ClearField(name)
            getattr(base, name).extend(value)
        elif field.message_type is not None:
            target = getattr(base, name)
            target.SetInParent()
            _merge_message(target, value, replace_lists)
        else:
            setattr(base, name, value)


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _merge_map(target: Any, value: Any, field: Any, replace_lists: bool) -> None:
    holds_messages = field.message_type.fields_by_name["value"].message_type is not None
    for key in value:
        if not holds_messages:
            target[key] = value[key]
        elif key in target:
            _merge_message(target[key], value[key], replace_lists)
        else:
            target[key].CopyFrom(value[key])


def _merge_message(target: Any, value: Any, replace_lists: bool) -> None:
    if isinstance(value, any_pb2.Any):
        merged = _merge_any(target, value, replace_lists)
        target.CopyFrom(merged)
    elif value.DESCRIPTOR.full_name.startswith("google.protobuf."):
        # Durations and wrappers are values, not containers.
        target.CopyFrom(value)
    else:
        merge(target, value, replace_lists=replace_lists)


def _merge_any(base: any_pb2.Any, patch: any_pb2.Any, replace_lists: bool) -> any_pb2.Any:
    """Merge two Any values of one type; another type replaces."""
    if not base.type_url or base.type_url != patch.type_url:
        return patch
    one, two = unpack(base), unpack(patch)
    if one is None or two is None:
        return patch
    merge(one, two, replace_lists=replace_lists)
    return pack(one)


def unpack(value: any_pb2.Any) -> Any:
    """The message inside, or None when its type is not installed."""
    made = message_for(value.type_url.rpartition("/")[2])
    if made is not None:
        made.ParseFromString(value.value)
    return made
