"""One real Envoy with a proxy's configuration, for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envoy_rig import Envoy
from meltemi.envoy import encode, encode_endpoints
from mesh_world import World
from pki import Authority, make_authority, write_identity

Places = dict[str, list[tuple[str, int]]]


@contextmanager
def running(
    folder: Path,
    world: World,
    name: str,
    places: Places,
    environment: dict[str, str] | None = None,
    authority: Authority | None = None,
    **changes: Any,
) -> Iterator[Envoy]:
    """The proxy of pod ``name``, its listeners at ``places``. ``changes`` are fields of ``Proxy``."""
    envoy = Envoy(folder, places, environment or {})
    try:
        write_identity(
            envoy.certificates,
            authority or make_authority(),
            "spiffe://cluster.local/ns/default/sa/default",
        )
        ir = world.ir(name, **changes)
        known = world.store.endpoints
        needs = ir.endpoint_needs
        assignments = [encode_endpoints(n, known.endpoints(n.hostname, n.namespace)) for n in needs]
        envoy.load(encode(ir), assignments)
        envoy.start()
        yield envoy
    finally:
        envoy.close()
