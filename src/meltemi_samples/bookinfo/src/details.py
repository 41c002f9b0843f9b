"""details: facts about a book. v1 knows them itself; v2 may ask an external catalogue.

``GET /details/<id>``. Environment: SERVICE_VERSION, ENABLE_EXTERNAL_BOOK_SERVICE (``true`` asks the public
books API), DO_NOT_ENCRYPT (``true``: plain HTTP on port 80, for a mesh that originates TLS).
"""

from __future__ import annotations

import os
from typing import Any

import aiohttp
from aiohttp import web

from meltemi_samples.bookinfo.src.service import (
    forwarded_headers,
    json_response,
    serve,
    session_key,
)

EXTERNAL_HOST = "www.googleapis.com"
EXTERNAL_ISBN = "0486424618"
EXTERNAL_TIMEOUT_S = 5.0


def own_details(book: int) -> dict[str, Any]:
    """The book as version 1 knows it."""
    return {
        "id": book,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890",
    }


def from_volume(book: int, info: dict[str, Any]) -> dict[str, Any]:
    """Translate one volume of the books API into our shape."""
    numbers = {entry["type"]: entry["identifier"] for entry in info.get("industryIdentifiers", [])}
    return {
        "id": book,
        "author": (info.get("authors") or ["unknown"])[0],
        "year": info.get("publishedDate", ""),
        "type": "paperback" if info.get("printType") == "BOOK" else "unknown",
        "pages": info.get("pageCount", 0),
        "publisher": info.get("publisher", ""),
        "language": "English" if info.get("language") == "en" else "unknown",
        "ISBN-10": numbers.get("ISBN_10", ""),
        "ISBN-13": numbers.get("ISBN_13", ""),
    }


async def _external_details(request: web.Request, book: int) -> dict[str, Any]:
    scheme = "http" if os.environ.get("DO_NOT_ENCRYPT") == "true" else "https"
    url = f"{scheme}://{EXTERNAL_HOST}/books/v1/volumes?q=isbn:{EXTERNAL_ISBN}"
    timeout = aiohttp.ClientTimeout(total=EXTERNAL_TIMEOUT_S)
    async with request.app[session_key].get(
        url, headers=forwarded_headers(request), timeout=timeout
    ) as answer:
        body = await answer.json()
    return from_volume(book, body["items"][0]["volumeInfo"])


async def details(request: web.Request) -> web.Response:
    """``GET /details/<id>``: 200 with the facts, 400 for an id that is no number, 500 when v2 fails."""
    try:
        book = int(request.match_info["book"])
    except ValueError:
        return json_response({"error": "the product id is a number, as in /0"}, 400)
    if os.environ.get("ENABLE_EXTERNAL_BOOK_SERVICE") != "true":
        return json_response(own_details(book))
    try:
        return json_response(await _external_details(request, book))
    except (aiohttp.ClientError, TimeoutError, KeyError, IndexError, ValueError) as error:
        reason = f"the external book service failed: {error or type(error).__name__}"
        return json_response({"error": reason}, 500)


if __name__ == "__main__":
    serve([web.get("/details/{book}", details)])
