"""HTTP/1.1 headers in the letters in which they were received."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import extension_pb2, protocol_pb2
from envoy.extensions.http.header_formatters.preserve_case.v3 import preserve_case_pb2

from meltemi.envoy.anys import pack


@lru_cache(maxsize=1)
def preserved_header_case() -> Any:
    """The header format of both sides of a proxy; one alone has no effect. Callers must not change it."""
    return protocol_pb2.Http1ProtocolOptions.HeaderKeyFormat(
        stateful_formatter=extension_pb2.TypedExtensionConfig(
            name="envoy.http.stateful_header_formatters.preserve_case",
            typed_config=pack(preserve_case_pb2.PreserveCaseFormatterConfig()),
        )
    )
