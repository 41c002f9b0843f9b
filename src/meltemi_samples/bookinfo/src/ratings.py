"""ratings: stars per reviewer, kept in memory, or in a database.

``GET /ratings/<id>`` and ``POST /ratings/<id>`` (a JSON object reviewer -> 1..5, kept until the process ends).
SERVICE_VERSION chooses the behaviour, as the image variants of the same names do:

- ``v1``: always answers;
- ``v2``: asks a database, which nobody can write to from here (501): see ``ratings_db``;
- ``v-faulty``: answers 503 half of the time;
- ``v-delayed``: takes 7 s half of the time;
- ``v-unavailable``: toggles between answering and 503 every 60 s;
- ``v-unhealthy``: toggles every 15 minutes and fails ``/health`` too.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time

from aiohttp import web

from meltemi_samples.bookinfo.src import ratings_db
from meltemi_samples.bookinfo.src.service import json_response, serve

DEFAULT = {"Reviewer1": 5, "Reviewer2": 4}
DELAY_S = 7.0
UNAVAILABLE_PERIOD_S = 60.0
UNHEALTHY_PERIOD_S = 15 * 60.0

_added: dict[int, dict[str, int]] = {}
_started = time.monotonic()


def _version() -> str:
    return os.environ.get("SERVICE_VERSION", "v1")


def in_bad_phase(elapsed_s: float, period_s: float) -> bool:
    """True in every second period: a service that toggles starts healthy."""
    return int(elapsed_s / period_s) % 2 == 1


def _down() -> bool:
    elapsed = time.monotonic() - _started
    match _version():
        case "v-faulty":
            return random.random() < 0.5
        case "v-unavailable":
            return in_bad_phase(elapsed, UNAVAILABLE_PERIOD_S)
        case "v-unhealthy":
            return in_bad_phase(elapsed, UNHEALTHY_PERIOD_S)
    return False


async def _health(_request: web.Request) -> web.Response:
    if _version() == "v-unhealthy" and _down():
        return json_response({"status": "Ratings is not healthy"}, 500)
    return json_response({"status": "Ratings is healthy"})


async def get_ratings(request: web.Request) -> web.Response:
    """``GET /ratings/<id>``: 200 with ``{id, ratings}``, 400 for a bad id, 503 in a faulty phase."""
    try:
        book = int(request.match_info["book"])
    except ValueError:
        return json_response({"error": "the product id is a number, as in /0"}, 400)
    if _down():
        return json_response({"error": "Service unavailable"}, 503)
    if _version() == "v2":
        return await _from_database(book)
    if _version() == "v-delayed" and random.random() < 0.5:
        await asyncio.sleep(DELAY_S)
    return json_response({"id": book, "ratings": _added.get(book, DEFAULT)})


async def _from_database(book: int) -> web.Response:
    try:
        found = await asyncio.to_thread(ratings_db.fetch, os.environ)
    except ratings_db.NoDatabase as error:
        return json_response({"error": str(error)}, 500)
    if not found:
        return json_response({"error": "ratings not found"}, 404)
    return json_response({"id": book, "ratings": dict(zip(DEFAULT, found, strict=False))})


async def post_ratings(request: web.Request) -> web.Response:
    """``POST /ratings/<id>``: store the ratings of the body; 400 says what is wrong with it."""
    try:
        book = int(request.match_info["book"])
    except ValueError:
        return json_response({"error": "the product id is a number, as in /0"}, 400)
    if _version() == "v2":
        return json_response({"error": "Post not implemented for database backed ratings"}, 501)
    try:
        ratings = json.loads(await request.text())
    except ValueError:
        return json_response({"error": "the body is not JSON"}, 400)
    if not isinstance(ratings, dict) or not all(
        isinstance(stars, int) and 1 <= stars <= 5 for stars in ratings.values()
    ):
        return json_response({"error": "ratings are an object: reviewer -> stars from 1 to 5"}, 400)
    _added[book] = ratings
    return json_response({"id": book, "ratings": ratings})


if __name__ == "__main__":
    serve(
        [web.get("/ratings/{book}", get_ratings), web.post("/ratings/{book}", post_ratings)],
        health=_health,
    )
