"""The name table of DNS capture as Istio's ``NameTable`` message."""

from __future__ import annotations

from meltemi.ir.name_table import NameTable
from meltemi.model.resource import Resource, resource_of
from meltemi.protos import nds_pb2

RESOURCE = "names"  # each proxy has one table; agents ask for all there is


def build_name_table(table: NameTable) -> nds_pb2.NameTable:
    """The message."""
    message = nds_pb2.NameTable()
    for name in table.names:
        message.table[name.host].CopyFrom(
            nds_pb2.NameTable.NameInfo(
                ips=name.addresses,
                registry=name.registry,
                shortname=name.shortname,
                namespace=name.namespace,
            )
        )
    return message


def name_table_resource(table: NameTable) -> Resource:
    """The message as a resource."""
    return resource_of(RESOURCE, build_name_table(table).SerializeToString(deterministic=True))
