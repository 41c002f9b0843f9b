"""EnvoyFilter patches on the start configuration.

istiod does not know a proxy's whole bootstrap, so it hands the patches on, each as a resource whose name says how and in which
order to merge it; the agent, ``compile`` and the test rig merge them with the function below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2

from meltemi.envoy.json_form import from_json, message_of, to_json
from meltemi.envoy.patch_edit import MERGES, Editor, PatchRecord
from meltemi.envoy.patch_match import added_here
from meltemi.envoy.patch_merge import merge
from meltemi.ir.proxy import ProxyIR
from meltemi.model.names import BOOTSTRAP_TYPE
from meltemi.model.resource import Resource, resource_of


def bootstrap_patches(ir: ProxyIR, record: PatchRecord) -> tuple[Resource, ...]:
    """The patches of a class, named ``NUMBER/OPERATION/NAMESPACE/NAME``."""
    found: list[Resource] = []
    editor = Editor(record)
    for patch in ir.patches:
        if patch.apply_to != "BOOTSTRAP" or not added_here(patch.match, ir.gateway):
            continue
        if patch.operation not in MERGES:
            text = f"the start configuration knows no operation {patch.operation}"
            record.problem(patch, text, "use MERGE")
            continue
        value = editor.value(patch, bootstrap_pb2.Bootstrap())
        if value is not None:
            name = f"{len(found):04}/{patch.operation}/{patch.filter}"
            found.append(resource_of(name, value.SerializeToString(deterministic=True)))
            record.applied.add(patch)
    return tuple(found)


def merged_bootstrap(
    bootstrap: Mapping[str, Any], patches: Iterable[tuple[str, bytes]]
) -> dict[str, Any]:
    """A bootstrap, JSON in and out, with patches by name. Raises ValueError when it is none that can be merged."""
    try:
        made = bootstrap_pb2.Bootstrap.FromString(from_json(BOOTSTRAP_TYPE, dict(bootstrap)))
    except Exception as error:  # json_format raises whatever it meets
        raise ValueError(f"the bootstrap cannot be read: {error}") from error
    for name, body in sorted(patches):
        lists = "/MERGE_AND_REPLACE_LIST/" in name
        merge(made, bootstrap_pb2.Bootstrap.FromString(body), replace_lists=lists)
    return to_json(message_of(BOOTSTRAP_TYPE, made.SerializeToString()))
