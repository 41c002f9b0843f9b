"""The IR as Envoy's bytes: mechanical, cached per IR value.

In: a ``ProxyIR``. Out: named resources by type URL, their versions digests of their bytes. Promises that equal
IR values give the same bytes, on every replica.
"""

from __future__ import annotations

from meltemi.envoy.encode import encode
from meltemi.envoy.endpoints import encode_endpoints
from meltemi.envoy.patch_edit import PatchRecord

__all__ = ["PatchRecord", "encode", "encode_endpoints"]
