"""Pretend requests through generated configuration, for tests: who gets it, and which line of YAML decided."""

from __future__ import annotations

from typing import Any

from meltemi.explain import Explanation, Request, explain
from mesh_world import World


def simulate(
    world: World, proxy: str, host: str = "", path: str = "/", **fields: Any
) -> Explanation:
    """What the proxy of a pod does with a request."""
    fields.setdefault("port", 9080)
    return explain(world.ir(proxy), Request(host=host, path=path, **fields))


def destinations(explanation: Explanation) -> dict[str, int]:
    """Shares by ``host`` or ``host/subset``, ports left out; ``{}`` when nothing is forwarded."""
    found: dict[str, int] = {}
    for target in explanation.clusters:
        parts = target.cluster.split("|")
        name = target.cluster if len(parts) != 4 else parts[3].split(".")[0]
        if len(parts) == 4 and parts[2]:
            name += f"/{parts[2]}"
        found[name] = found.get(name, 0) + target.weight
    return found
