"""Request bodies: reading them within limits, and decoding JSON and YAML.

In: an aiohttp request. Out: plain Python values, or ApiError 400, 413, 415. Promises that no body
over the limit is kept, that YAML aliases cannot multiply (no billion laughs), and that nesting
deeper than `MAX_DEPTH` is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver.errors import bad_request, too_large, unsupported_media_type
from localkube.apiserver.protobuf_bodies import MEDIA_TYPE as PROTOBUF
from localkube.apiserver.protobuf_bodies import decode_protobuf

# kube-apiserver's limit on request bodies.
MAX_BODY_BYTES = 3 * 1024 * 1024
# Deeper than any real object; OpenAPI schemas in CRDs stay far below.
MAX_DEPTH = 200
_MAX_ALIASES = 200
# Maps and lists in one body, aliases expanded; real objects have some thousands.
_MAX_NODES = 500_000

JSON = "application/json"
YAML = "application/yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
OBJECT_TYPES = (JSON, YAML, PROTOBUF)
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)


async def read_body(request: web.Request) -> bytes:
    """Return the body. Raises ApiError 413 over the limit."""
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_chunked(65536):
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(MAX_BODY_BYTES)
        chunks.append(chunk)
    return b"".join(chunks)


async def read_object(request: web.Request, warnings: list[str]) -> dict[str, Any]:
    """Return the body's object. Raises ApiError 400, 413, 415."""
    body = await read_body(request)
    if not body:
        raise bad_request("the request has no body; an object is expected")
    value = _decode_object(request, body, warnings)
    if not isinstance(value, dict):
        raise bad_request("the body is not an object")
    return value


async def read_options(request: web.Request, warnings: list[str]) -> dict[str, Any]:
    """Return a DELETE request's DeleteOptions, {} without a body."""
    body = await read_body(request)
    if not body.strip():
        return {}
    value = _decode_object(request, body, warnings)
    if not isinstance(value, dict):
        raise bad_request("the body is not a DeleteOptions object")
    return value


def _decode_object(request: web.Request, body: bytes, warnings: list[str]) -> Any:
    match _media_type(request, default=JSON):
        case "application/json":
            return decode_json(body)
        case "application/yaml":
            return decode_yaml(body)
        case "application/vnd.kubernetes.protobuf":
            value, unknown = decode_protobuf(body)
            warnings.extend(f"unknown field {where} was left out" for where in unknown)
            return value
        case other:
            raise unsupported_media_type(other, OBJECT_TYPES)


async def read_patch(request: web.Request) -> tuple[str, Any]:
    """Return the patch's media type and its decoded body. Raises ApiError 400, 413, 415."""
    media_type = _media_type(request, default="")
    if media_type not in PATCH_TYPES:
        raise unsupported_media_type(media_type, PATCH_TYPES)
    body = await read_body(request)
    return media_type, decode_yaml(body) if media_type == APPLY_PATCH else decode_json(body)


def _media_type(request: web.Request, default: str) -> str:
    given = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return given or default


def decode_json(body: bytes) -> Any:
    """Decode JSON. Raises ApiError 400 that says where it is broken."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise bad_request(f"the body is nested deeper than {MAX_DEPTH} levels") from None
    check_depth(value)
    return value


def decode_yaml(body: bytes) -> Any:
    """Decode YAML (of which JSON is a part) to JSON values. Raises ApiError 400."""
    if body.lstrip()[:1] == b"{":
        # kubectl sends apply patches as JSON; the fast decoder reads them.
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            pass
        else:
            check_depth(value)
            return value
    import yaml

    try:
        value = yaml.load(body, _safe_loader())  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise bad_request(f"the body is not YAML: {error}") from None
    except RecursionError:
        raise bad_request(f"the body is nested deeper than {MAX_DEPTH} levels") from None
    check_depth(value)
    return value


def _safe_loader() -> Any:
    """Build the loader class once: safe, timestamps kept as text, aliases limited."""
    global _loader
    if _loader is not None:
        return _loader
    import yaml

    parent: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class JsonYamlLoader(parent):  # type: ignore[misc]  # the C loader has no stubs
        """YAML as Kubernetes reads it: only what JSON can hold."""

        aliases = 0

        def compose_node(self, above: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                self.aliases += 1
                if self.aliases > _MAX_ALIASES:
                    raise yaml.YAMLError(f"more than {_MAX_ALIASES} aliases")
            return super().compose_node(above, index)

    JsonYamlLoader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in parent.yaml_implicit_resolvers.items()
    }
    _loader = JsonYamlLoader
    return _loader


_loader: Any = None


def check_depth(value: Any) -> None:
    """Refuse values nested too deep, or expanded by aliases beyond reason. Raises ApiError 400."""
    level: list[Any] = [value]
    depth = nodes = 0
    while level:
        depth += 1
        nodes += len(level)
        if depth > MAX_DEPTH:
            raise bad_request(f"the body is nested deeper than {MAX_DEPTH} levels")
        if nodes > _MAX_NODES:
            raise bad_request("the body expands to too many values")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(child for child in item.values() if isinstance(child, dict | list))
            elif isinstance(item, list):
                deeper.extend(child for child in item if isinstance(child, dict | list))
        level = deeper
