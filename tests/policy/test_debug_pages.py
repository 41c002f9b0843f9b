"""Debug pages show the mesh's configuration: only loopback, or a token of istiod's namespace, may read them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from aiohttp.test_utils import make_mocked_request

from meltemi.adapters.authenticate import CannotReview
from meltemi.adapters.debug_http import DebugHttp
from meltemi.ca.identity import Identity, NotAuthenticated


class Reviewer:
    """Knows two tokens."""

    async def review(self, token: str) -> Identity:
        """Whose token it is."""
        if token == "down":
            raise CannotReview("the API server is away")
        if token not in ("istiod", "app"):
            raise NotAuthenticated("unknown token")
        return Identity("cluster.local", "istio-system" if token == "istiod" else "shop", token)


async def status(address: str, token: str = "", path: str = "/debug/configz") -> int:
    """What a caller from an address gets."""
    pages = mock.Mock(pages={})
    pages.render.return_value = b"{}"
    site: Any = DebugHttp(
        pages, mock.Mock(), lambda: True, Reviewer(), "istio-system", "1", lambda: None
    )
    transport = mock.Mock()
    transport.get_extra_info.side_effect = lambda name, *_: (
        (address, 4000) if name == "peername" else None
    )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    app = site.monitoring_application()
    request = make_mocked_request("GET", path, headers=headers, transport=transport, app=app)
    found = await app.router.resolve(request)
    request._match_info = found
    answer = await found.handler(request)
    return int(answer.status)


@pytest.mark.parametrize(
    ("address", "token", "wanted"),
    [
        ("127.0.0.1", "", 200),
        ("::1", "", 200),
        ("10.1.2.3", "", 401),
        ("10.1.2.3", "stolen", 401),
        ("10.1.2.3", "app", 403),
        ("10.1.2.3", "istiod", 200),
        ("10.1.2.3", "down", 503),
    ],
)
async def test_who_reads_debug_pages(address: str, token: str, wanted: int) -> None:
    """Everybody else is refused; when tokens cannot be checked, everybody but loopback."""
    assert await status(address, token) == wanted
