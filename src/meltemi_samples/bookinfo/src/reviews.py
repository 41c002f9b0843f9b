"""reviews: two reviews of a book; v2 and v3 adorn them with stars that they fetch from ratings.

``GET /reviews/<id>``. Environment: SERVICE_VERSION, ENABLE_RATINGS, STAR_COLOR (``black`` waits 10 s for
ratings; any other colour 2.5 s, which is what fixes Bookinfo's planted timeout bug), RATINGS_HOSTNAME,
RATINGS_SERVICE_PORT, SERVICES_DOMAIN, HOSTNAME, CLUSTER_NAME.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import aiohttp
from aiohttp import web

from meltemi_samples.bookinfo.src.service import (
    forwarded_headers,
    json_response,
    neighbour_url,
    serve,
    session_key,
)

UNAVAILABLE = "Ratings service is currently unavailable"
TEXTS = (
    (
        "Reviewer1",
        "Two hours of doors slamming on the wrong twin. I laughed until the interval and then more.",
    ),
    (
        "Reviewer2",
        "Quick, silly and perfectly wound up; look elsewhere in Shakespeare for the deep waters.",
    ),
)


def ratings_timeout_s(color: str) -> float:
    """How long this version waits for ratings."""
    return 10.0 if color == "black" else 2.5


def compose(
    book: int, ratings: dict[str, int] | None, *, enabled: bool, color: str
) -> dict[str, Any]:
    """The answer. ``ratings`` is None when the ratings service failed."""
    reviews: list[dict[str, Any]] = []
    for reviewer, text in TEXTS:
        review: dict[str, Any] = {"reviewer": reviewer, "text": text}
        if enabled and ratings is not None and reviewer in ratings:
            review["rating"] = {"stars": ratings[reviewer], "color": color}
        elif enabled:
            review["rating"] = {"error": UNAVAILABLE}
        reviews.append(review)
    return {
        "id": str(book),
        "podname": os.environ.get("HOSTNAME", socket.gethostname()),
        "clustername": os.environ.get("CLUSTER_NAME"),
        "reviews": reviews,
    }


async def _ratings(request: web.Request, book: int, color: str) -> dict[str, int] | None:
    timeout = aiohttp.ClientTimeout(total=ratings_timeout_s(color))
    try:
        async with request.app[session_key].get(
            neighbour_url("RATINGS", f"/ratings/{book}"),
            headers=forwarded_headers(request),
            timeout=timeout,
        ) as answer:
            if answer.status != 200:
                return None
            return {str(k): int(v) for k, v in (await answer.json())["ratings"].items()}
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
        return None


async def reviews(request: web.Request) -> web.Response:
    """``GET /reviews/<id>``: always 200 for a numeric id; a failed ratings call shows in the body."""
    try:
        book = int(request.match_info["book"])
    except ValueError:
        return json_response({"error": "the product id is a number, as in /0"}, 400)
    enabled = os.environ.get("ENABLE_RATINGS", "false") == "true"
    color = os.environ.get("STAR_COLOR", "black")
    ratings = await _ratings(request, book, color) if enabled else None
    return json_response(compose(book, ratings, enabled=enabled, color=color))


if __name__ == "__main__":
    serve([web.get("/reviews/{book}", reviews)])
