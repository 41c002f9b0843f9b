"""Header operations of VirtualServices."""

from __future__ import annotations

from meltemi.ir.route import NO_HEADER_OPS, HeaderOps
from meltemi.model.traffic import Headers

_AUTHORITY = (":authority", "host")


def header_ops(headers: Headers | None) -> HeaderOps:
    """Changes to headers; a changed authority is no header change but a host rewrite (``authority_of``)."""
    if headers is None:
        return NO_HEADER_OPS
    request, response = headers.request, headers.response
    return HeaderOps(
        request_set=tuple(
            (k, v) for k, v in sorted(request.set.items()) if k.lower() not in _AUTHORITY
        )
        if request is not None
        else (),
        request_add=tuple(sorted(request.add.items())) if request is not None else (),
        request_remove=request.remove if request is not None else (),
        response_set=tuple(sorted(response.set.items())) if response is not None else (),
        response_add=tuple(sorted(response.add.items())) if response is not None else (),
        response_remove=response.remove if response is not None else (),
    )


def authority_of(headers: Headers | None) -> str:
    """The authority that ``headers.request.set`` asks for, or ''."""
    if headers is None or headers.request is None:
        return ""
    return next((v for k, v in headers.request.set.items() if k.lower() in _AUTHORITY), "")
