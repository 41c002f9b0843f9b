"""productpage: the page that people see. It asks details and reviews, and shows what failed when they fail.

``/``, ``/index.html``, ``/productpage``, ``POST /login``, ``/logout``, ``/health``, ``/metrics``,
``/api/v1/products[/<id>[/reviews|/ratings]]``, ``/static``. A login is only a name: it is sent to the other
services as the header ``end-user``, on which routing rules can match. Environment: DETAILS_, REVIEWS_ and
RATINGS_ HOSTNAME and SERVICE_PORT, SERVICES_DOMAIN, FLOOD_FACTOR (requests sent to reviews beside the real
one, for load demonstrations).

The known timeout bug of Bookinfo is kept on purpose: reviews gets two tries of 3 s each, so that a delay of 7 s
injected before ratings shows as "reviews are unavailable" although reviews itself would wait 10 s.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import html
import os
import secrets
import socket
from pathlib import Path
from string import Template
from typing import Any

import aiohttp
import prometheus_client
from aiohttp import web

from meltemi_samples.bookinfo.src.service import (
    forwarded_headers,
    json_response,
    log,
    neighbour_url,
    serve,
    session_key,
)

HERE = Path(__file__).parent
TIMEOUT = aiohttp.ClientTimeout(total=3.0)
REVIEWS_TRIES = 2
REVIEWS_UNAVAILABLE = "Sorry, product reviews are currently unavailable for this book."
DETAILS_UNAVAILABLE = "Sorry, product details are currently unavailable for this book."
RATINGS_UNAVAILABLE = "Sorry, product ratings are currently unavailable for this book."
PRODUCTS = (
    {
        "id": 0,
        "title": "The Comedy of Errors",
        "descriptionHtml": (
            "Two pairs of twins, both parted at birth, meet in one town on one day: "
            "one of <b>Shakespeare</b>'s early plays, and his shortest. Mistaken identity, "
            "slapstick and puns do the rest."
        ),
    },
)
COOKIE = "session"
_key = os.environ.get("SESSION_KEY", "").encode() or secrets.token_bytes(32)
_results = prometheus_client.Counter(
    "request_result", "Results of requests", ["destination_app", "response_code"]
)


def sign(user: str) -> str:
    """A session cookie for ``user``: the name and a MAC, so that no one can set a name without login."""
    mac = hmac.new(_key, user.encode(), hashlib.sha256).digest()
    return ".".join(base64.urlsafe_b64encode(part).decode() for part in (user.encode(), mac))


def logged_in(cookie: str | None) -> str:
    """The user of a session cookie, or ``""`` for none or a forged one."""
    try:
        raw_user, raw_mac = (base64.urlsafe_b64decode(part) for part in (cookie or "").split("."))
        expected = hmac.new(_key, raw_user, hashlib.sha256).digest()
        return raw_user.decode() if hmac.compare_digest(expected, raw_mac) else ""
    except ValueError:
        return ""


def _outgoing(request: web.Request) -> dict[str, str]:
    headers = forwarded_headers(request)
    user = logged_in(request.cookies.get(COOKIE))
    if user:
        headers["end-user"] = user
    return headers


async def _ask(request: web.Request, app: str, path: str, sorry: str) -> tuple[int, Any]:
    """One call: (status, body); 500 with an apology when the neighbour did not answer in time."""
    try:
        async with request.app[session_key].get(
            neighbour_url(app.upper(), path), headers=_outgoing(request), timeout=TIMEOUT
        ) as answer:
            _results.labels(app, str(answer.status)).inc()
            if answer.status == 200:
                return 200, await answer.json(content_type=None)
            return answer.status, {"error": sorry}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        _results.labels(app, "500").inc()
        return 500, {"error": sorry}


async def _details(request: web.Request, book: int) -> tuple[int, Any]:
    return await _ask(request, "details", f"/details/{book}", DETAILS_UNAVAILABLE)


async def _reviews(request: web.Request, book: int) -> tuple[int, Any]:
    status, body = 500, {"error": REVIEWS_UNAVAILABLE}
    for _ in range(REVIEWS_TRIES):
        status, body = await _ask(request, "reviews", f"/reviews/{book}", REVIEWS_UNAVAILABLE)
        if status == 200:
            break
    return status, body


async def _ratings(request: web.Request, book: int) -> tuple[int, Any]:
    return await _ask(request, "ratings", f"/ratings/{book}", RATINGS_UNAVAILABLE)


async def _flood(request: web.Request) -> None:
    factor = int(os.environ.get("FLOOD_FACTOR", "0") or 0)
    if factor:
        await asyncio.gather(
            *(_ask(request, "reviews", "/reviews/0", REVIEWS_UNAVAILABLE) for _ in range(factor))
        )


def _template(name: str) -> Template:
    return Template((HERE / "templates" / name).read_text(encoding="utf-8"))


_PAGE = _template("productpage.html")
_INDEX = _template("index.html")


def _stars(rating: dict[str, Any]) -> str:
    if "error" in rating:
        return f'<p class="stars error">{html.escape(str(rating["error"]))}</p>'
    count, color = int(rating["stars"]), html.escape(str(rating["color"]))
    full, empty = "★" * count, "☆" * (5 - count)
    return f'<p class="stars" style="color:{color}" title="{count} of 5">{full}{empty}</p>'


def _reviews_html(status: int, body: Any) -> str:
    if status != 200:
        return f'<p class="error" id="reviews-error">{html.escape(body["error"])}</p>'
    cards = [
        f"<blockquote><p>{html.escape(review['text'])}</p><footer>{html.escape(review['reviewer'])}"
        f"</footer>{_stars(review['rating']) if 'rating' in review else ''}</blockquote>"
        for review in body["reviews"]
    ]
    served = html.escape(str(body.get("podname")))
    where = body.get("clustername")
    place = f" in cluster {html.escape(str(where))}" if where and where != "null" else ""
    return (
        "\n".join(cards) + f'<p class="served">Reviews served by <code>{served}</code>{place}</p>'
    )


def _details_html(status: int, body: Any) -> str:
    if status != 200:
        return f'<p class="error" id="details-error">{html.escape(body["error"])}</p>'
    rows = (
        ("ISBN-10", body.get("ISBN-10")),
        ("Publisher", body.get("publisher")),
        ("Pages", body.get("pages")),
        ("Type", body.get("type")),
        ("Language", body.get("language")),
        ("Year", body.get("year")),
    )
    cells = (f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in rows)
    return f"<dl>{''.join(cells)}</dl>"


def _login_html(user: str) -> str:
    if user:
        return f'<span id="user">{html.escape(user)}</span> <a class="button" href="logout">Sign out</a>'
    return (
        '<form method="post" action="login"><input name="username" placeholder="User name" '
        'aria-label="User name" required><input name="passwd" type="password" '
        'placeholder="Any password" aria-label="Password"><button>Sign in</button></form>'
    )


async def productpage(request: web.Request) -> web.Response:
    """The page. Its status is 200 even where a neighbour failed; the failure is written on the page."""
    product = PRODUCTS[0]
    await _flood(request)
    (d_status, details), (r_status, reviews) = (
        await _details(request, 0),
        await _reviews(request, 0),
    )
    page = _PAGE.substitute(
        title=product["title"],
        description=product["descriptionHtml"],
        login=_login_html(logged_in(request.cookies.get(COOKIE))),
        details=_details_html(d_status, details),
        reviews=_reviews_html(r_status, reviews),
        pod=html.escape(os.environ.get("HOSTNAME", socket.gethostname())),
    )
    return web.Response(text=page, content_type="text/html")


async def index(request: web.Request) -> web.Response:
    """The front door: a link to the page and the tables of services."""
    rows = "".join(
        f"<tr><td>{name}</td><td><code>{html.escape(neighbour_url(name.upper(), ''))}</code></td></tr>"
        for name in ("details", "reviews", "ratings")
    )
    return web.Response(text=_INDEX.substitute(rows=rows), content_type="text/html")


def _back(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "productpage"})


async def login(request: web.Request) -> web.Response:
    """``POST /login`` with ``username``: any password will do."""
    form = await request.post()
    user = str(form.get("username", "")).strip()
    answer = _back(request)
    if user:
        answer.set_cookie(COOKIE, sign(user), httponly=True, samesite="Lax")
    return answer


async def logout(request: web.Request) -> web.Response:
    """Forget the login."""
    answer = _back(request)
    answer.del_cookie(COOKIE)
    return answer


async def metrics(_request: web.Request) -> web.Response:
    """Prometheus text."""
    return web.Response(
        body=prometheus_client.generate_latest(),
        headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST},
    )


async def products(_request: web.Request) -> web.Response:
    """All products."""
    return json_response(list(PRODUCTS))


def _api(ask: Any) -> Any:
    async def handler(request: web.Request) -> web.Response:
        try:
            book = int(request.match_info["book"])
        except ValueError:
            return json_response({"error": "the product id is a number, as in /0"}, 400)
        status, body = await ask(request, book)
        return json_response(body, status)

    return handler


async def _product(request: web.Request, book: int) -> tuple[int, Any]:
    if not 0 <= book < len(PRODUCTS):
        return 404, {"error": f"no product {book}"}
    status, details = await _details(request, book)
    if status == 200:
        details = {**details, "title": PRODUCTS[book]["title"]}
    return status, details


def routes() -> list[web.AbstractRouteDef]:
    """All routes of the service."""
    api = "/api/v1/products"
    return [
        web.get("/", index),
        web.get("/index.html", index),
        web.get("/productpage", productpage),
        web.post("/login", login),
        web.get("/logout", logout),
        web.get("/metrics", metrics),
        web.get(api, products),
        web.get(f"{api}/{{book}}", _api(_product)),
        web.get(f"{api}/{{book}}/reviews", _api(_reviews)),
        web.get(f"{api}/{{book}}/ratings", _api(_ratings)),
        web.static("/static", HERE / "static"),
    ]


if __name__ == "__main__":
    log.info("product page starts")
    serve(routes())
