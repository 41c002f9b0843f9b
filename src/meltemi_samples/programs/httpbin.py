"""httpbin: a server that answers what it is asked for, in the shapes of go-httpbin.

``python -m meltemi_samples.programs.httpbin [port]`` (8080). Every answer about a request is a JSON object with
``args``, ``headers`` (each value a list), ``method``, ``origin`` and ``url``; what had a body adds ``data``, ``files``,
``form`` and ``json``. Limits: 10 s of delay, 10 MiB of body or bytes. With HTTPS_CERT_FILE and HTTPS_KEY_FILE in the
environment it speaks TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import hashlib
import json
import os
import random
import re
import socket
import ssl
import uuid
import zlib
from typing import Any

from aiohttp import web

from meltemi_samples.programs import serving

PORT = 8080
MAX_DELAY_S = 10.0
MAX_BYTES = 10 * 1024 * 1024
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
PAGE = """<!DOCTYPE html>
<html><head><title>A page</title></head>
<body><h1>Of sails and wind</h1>
<p>The meltemi blows from the north all summer long. Whoever knows it ties the boat up well, and sails early.</p>
</body></html>
"""
DOCUMENT = {
    "slideshow": {
        "title": "Sample Slide Show",
        "author": "the samples",
        "slides": [{"title": "Wind", "type": "all"}, {"title": "Sails", "type": "all"}],
    }
}


def text_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer that people can read."""
    body = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return web.Response(
        text=body, status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


def wrong(why: str) -> web.HTTPException:
    """400 with the reason."""
    body = json.dumps({"status_code": 400, "error": "Bad Request", "detail": why})
    return web.HTTPBadRequest(text=body, content_type="application/json")


def seconds(text: str) -> float:
    """A duration: seconds as a number, or Go's notation (``1.5s``, ``250ms``). ValueError if it is neither or too long."""
    try:
        found = float(text)
    except ValueError:
        parts = _PART.findall(text)
        if not parts or "".join(map("".join, parts)) != text:
            raise ValueError(f"{text!r} is no duration, as in 2 or 250ms") from None
        found = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 <= found <= MAX_DELAY_S:
        raise ValueError(f"a duration is between 0 and {MAX_DELAY_S:g} s")
    return found


def number(text: str, low: int, high: int) -> int:
    """A whole number in a range, or 400."""
    try:
        found = int(text)
    except ValueError:
        found = low - 1
    if not low <= found <= high:
        raise wrong(f"{text!r} is no whole number from {low} to {high}")
    return found


def origin(request: web.Request) -> str:
    """The caller's address: as a proxy says, else of the connection."""
    forwarded = request.headers.get("X-Forwarded-For", "")
    return forwarded.split(",")[0].strip() or request.remote or ""


def lists(pairs: Any) -> dict[str, list[str]]:
    """Names with all their values, in order of the names."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return dict(sorted(found.items()))


def describe(request: web.Request) -> dict[str, Any]:
    """What every answer about a request has."""
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
    return {
        "args": lists(request.query.items()),
        "headers": lists((name.title(), value) for name, value in request.headers.items()),
        "method": request.method,
        "origin": origin(request),
        "url": f"{scheme}://{request.host}{request.raw_path}",
    }


async def describe_body(request: web.Request) -> dict[str, Any]:
    """What the body of a request was."""
    kind = request.content_type
    found: dict[str, Any] = {"data": "", "files": {}, "form": {}, "json": None}
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        form = await request.post()
        for name, value in form.items():
            if isinstance(value, web.FileField):
                text = value.file.read().decode(errors="replace")
                found["files"].setdefault(name, []).append(text)
            else:
                found["form"].setdefault(name, []).append(str(value))
        return found
    raw = await request.read()
    found["data"] = raw.decode(errors="replace")
    if kind == "application/json":
        try:
            found["json"] = json.loads(raw)
        except ValueError as error:
            raise wrong(f"the body is not JSON: {error}") from error
    return found


async def echo(request: web.Request) -> web.Response:
    """``/get``, ``/head`` ... without a body, ``/post``, ``/anything`` ... with one."""
    found = describe(request)
    if request.method not in ("GET", "HEAD") or request.path.startswith("/anything"):
        found |= await describe_body(request)
    return text_json(found)


async def headers(request: web.Request) -> web.Response:
    """``/headers``: those of the request."""
    return text_json({"headers": describe(request)["headers"]})


async def ip(request: web.Request) -> web.Response:
    """``/ip``: the caller's address."""
    return text_json({"origin": origin(request)})


async def user_agent(request: web.Request) -> web.Response:
    """``/user-agent``."""
    return text_json({"user-agent": request.headers.get("User-Agent", "")})


async def hostname(_request: web.Request) -> web.Response:
    """``/hostname``: of the pod."""
    return text_json({"hostname": os.environ.get("HOSTNAME", socket.gethostname())})


def choose_status(text: str, dice: random.Random | None = None) -> int:
    """One of ``200,503`` or of ``200:0.9,503:0.1``. ValueError says what is wrong."""
    choices, weights = [], []
    for part in text.split(","):
        code, _, weight = part.partition(":")
        choices.append(int(code))
        weights.append(float(weight or 1))
    if not all(200 <= code <= 599 for code in choices) or min(weights) < 0 or not sum(weights):
        raise ValueError("codes are from 200 to 599, weights positive")
    return (dice or random.Random()).choices(choices, weights)[0]


async def status(request: web.Request) -> web.Response:
    """``/status/503`` or ``/status/200:0.9,503:0.1``: an answer with that status."""
    try:
        code = choose_status(request.match_info["codes"])
    except ValueError as error:
        raise wrong(str(error)) from error
    extra = {}
    if code in (301, 302, 303, 307, 308):
        extra["Location"] = "/redirect/1"
    if code == 401:
        extra["WWW-Authenticate"] = 'Basic realm="Fake Realm"'
    body = "I'm a teapot!" if code == 418 else ""
    return web.Response(status=code, headers=extra, text=body)


async def delay(request: web.Request) -> web.Response:
    """``/delay/2`` or ``/delay/250ms``: the answer of ``/get``, later."""
    try:
        await asyncio.sleep(seconds(request.match_info["time"]))
    except ValueError as error:
        raise wrong(str(error)) from error
    return text_json(describe(request) | await describe_body(request))


def random_bytes(request: web.Request) -> bytes:
    """As many as the path says, the same ones for the same ``seed``."""
    count = number(request.match_info["count"], 0, MAX_BYTES)
    return random.Random(request.query.get("seed")).randbytes(count)


async def some_bytes(request: web.Request) -> web.Response:
    """``/bytes/1024``."""
    return web.Response(body=random_bytes(request), content_type="application/octet-stream")


async def stream_bytes(request: web.Request) -> web.StreamResponse:
    """``/stream-bytes/1024?chunk_size=100``: without a Content-Length."""
    body = random_bytes(request)
    size = number(request.query.get("chunk_size", "10240"), 1, MAX_BYTES)
    answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    for start in range(0, len(body), size):
        await answer.write(body[start : start + size])
    return answer


async def stream(request: web.Request) -> web.StreamResponse:
    """``/stream/3``: so many lines of JSON."""
    count = number(request.match_info["count"], 1, 100)
    answer = web.StreamResponse(headers={"Content-Type": "application/json"})
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    for index in range(count):
        await answer.write(json.dumps(describe(request) | {"id": index}).encode() + b"\n")
    return answer


async def drip(request: web.Request) -> web.StreamResponse:
    """``/drip?duration=2s&numbytes=10&delay=0&code=200``: bytes one by one over that time."""
    try:
        pause, lead = (
            seconds(request.query.get(k, d)) for k, d in (("duration", "2"), ("delay", "0"))
        )
    except ValueError as error:
        raise wrong(str(error)) from error
    count = number(request.query.get("numbytes", "10"), 1, MAX_BYTES)
    code = number(request.query.get("code", "200"), 200, 599)
    await asyncio.sleep(lead)
    answer = web.StreamResponse(status=code, headers={"Content-Type": "application/octet-stream"})
    answer.content_length = count
    await answer.prepare(request)
    for index in range(count):
        if index:
            await asyncio.sleep(pause / max(1, count - 1))
        await answer.write(b"*")
    return answer


async def sse(request: web.Request) -> web.StreamResponse:
    """``/sse?count=10&duration=5s``: server-sent events."""
    try:
        pause = seconds(request.query.get("duration", "5"))
    except ValueError as error:
        raise wrong(str(error)) from error
    count = number(request.query.get("count", "10"), 1, 1000)
    answer = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await answer.prepare(request)
    for index in range(count):
        if index:
            await asyncio.sleep(pause / max(1, count - 1))
        await answer.write(f'event: ping\ndata: {{"id":{index}}}\n\n'.encode())
    return answer


async def html(_request: web.Request) -> web.Response:
    """``/html``: a page."""
    return web.Response(text=PAGE, content_type="text/html")


async def document(_request: web.Request) -> web.Response:
    """``/json``: a document."""
    return text_json(DOCUMENT)


async def robots(_request: web.Request) -> web.Response:
    """``/robots.txt``."""
    return web.Response(text="User-agent: *\nDisallow: /deny\n")


async def deny(_request: web.Request) -> web.Response:
    """``/deny``: what robots shall not ask for."""
    return web.Response(text="You were told not to come here.\n")


async def a_uuid(_request: web.Request) -> web.Response:
    """``/uuid``: a random one."""
    return text_json({"uuid": str(uuid.uuid4())})


async def decode_base64(request: web.Request) -> web.Response:
    """``/base64/aGk=``: the text behind it."""
    try:
        return web.Response(text=base64.urlsafe_b64decode(request.match_info["text"]).decode())
    except ValueError as error:
        raise wrong(f"not base64: {error}") from error


async def response_headers(request: web.Request) -> web.Response:
    """``/response-headers?name=value``: an answer that has these headers."""
    answer = text_json(lists(request.query.items()))
    for name, value in request.query.items():
        if name.lower() == "content-type":
            answer.headers["Content-Type"] = value
        else:
            answer.headers.add(name, value)
    return answer


async def redirect(request: web.Request) -> web.Response:
    """``/redirect/3``: three redirects, then ``/get``; absolute ones below ``/absolute-redirect``."""
    left = number(request.match_info["count"], 1, 100) - 1
    kind = request.path.split("/")[1]
    target = f"/{kind}/{left}" if left else "/get"
    if kind == "absolute-redirect" or request.query.get("absolute") == "true":
        target = f"{request.headers.get('X-Forwarded-Proto', 'http')}://{request.host}{target}"
    return web.Response(status=302, headers={"Location": target})


async def redirect_to(request: web.Request) -> web.Response:
    """``/redirect-to?url=/get&status_code=302``."""
    if "url" not in request.query:
        raise wrong("url is missing")
    code = number(request.query.get("status_code", "302"), 300, 399)
    return web.Response(status=code, headers={"Location": request.query["url"]})


async def cookies(request: web.Request) -> web.Response:
    """``/cookies``: those of the request."""
    return text_json({"cookies": dict(request.cookies)})


async def change_cookies(request: web.Request) -> web.Response:
    """``/cookies/set?name=value`` and ``/cookies/delete?name``, then ``/cookies``."""
    answer = web.Response(status=302, headers={"Location": "/cookies"})
    for name, value in request.query.items():
        if request.path.endswith("/set"):
            answer.set_cookie(name, value)
        else:
            answer.del_cookie(name)
    return answer


async def basic_auth(request: web.Request) -> web.Response:
    """``/basic-auth/user/password``: 200 for exactly these, else 401 (404 below ``/hidden-basic-auth``)."""
    user, password = request.match_info["user"], request.match_info["password"]
    expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    allowed = request.headers.get("Authorization") == expected
    found = {"authorized": allowed, "user": user}
    if allowed:
        return text_json(found)
    if request.path.startswith("/hidden"):
        return text_json(found, 404)
    return text_json(found, 401, {"WWW-Authenticate": 'Basic realm="Fake Realm"'})


async def bearer(request: web.Request) -> web.Response:
    """``/bearer``: 200 for any bearer token, else 401."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer" or not token:
        return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
    return text_json({"authenticated": True, "token": token})


async def compressed(request: web.Request) -> web.Response:
    """``/gzip`` and ``/deflate``: the answer of ``/get``, compressed."""
    kind = request.path[1:]
    flag = "gzipped" if kind == "gzip" else "deflated"
    raw = json.dumps(describe(request) | {flag: True}, indent=2).encode()
    body = gzip.compress(raw) if kind == "gzip" else zlib.compress(raw)
    return web.Response(
        body=body, headers={"Content-Encoding": kind}, content_type="application/json"
    )


async def cache(request: web.Request) -> web.Response:
    """``/cache``: 304 for a conditional request; ``/cache/60``: may be kept so long."""
    if "age" in request.match_info:
        age = number(request.match_info["age"], 0, 10**9)
        return text_json(describe(request), headers={"Cache-Control": f"public, max-age={age}"})
    if {"If-None-Match", "If-Modified-Since"} & set(request.headers):
        return web.Response(status=304)
    tag = hashlib.sha256(request.path.encode()).hexdigest()[:16]
    return text_json(describe(request), headers={"ETag": f'"{tag}"'})


async def etag(request: web.Request) -> web.Response:
    """``/etag/x``: 304 for a caller that has it, 412 for one that insists on another."""
    own = f'"{request.match_info["tag"]}"'
    known = [text.strip() for text in request.headers.get("If-None-Match", "").split(",")]
    if own in known or "*" in known:
        return web.Response(status=304, headers={"ETag": own})
    wanted = [text.strip() for text in request.headers.get("If-Match", "*").split(",")]
    if own not in wanted and "*" not in wanted:
        return web.Response(status=412, headers={"ETag": own})
    return text_json(describe(request), headers={"ETag": own})


async def unstable(request: web.Request) -> web.Response:
    """``/unstable?failure_rate=0.5``: 500 that often."""
    try:
        rate = float(request.query.get("failure_rate", "0.5"))
    except ValueError as error:
        raise wrong("failure_rate is a number from 0 to 1") from error
    return web.Response(status=500 if random.random() < rate else 200)


async def websocket_echo(request: web.Request) -> web.WebSocketResponse:
    """``/websocket/echo``: every message comes back."""
    socket_ = web.WebSocketResponse(max_msg_size=MAX_BYTES)
    await socket_.prepare(request)
    async for message in socket_:
        if message.type is web.WSMsgType.TEXT:
            await socket_.send_str(message.data)
        elif message.type is web.WSMsgType.BINARY:
            await socket_.send_bytes(message.data)
    return socket_


async def index(request: web.Request) -> web.Response:
    """``/``: what there is."""
    paths = sorted(
        {
            str(resource.canonical)
            for resource in request.app.router.resources()
            if resource.canonical != "/"
        }
    )
    items = "".join(f"<li><code>{path}</code></li>" for path in paths)
    return web.Response(
        text=f"<!DOCTYPE html><title>httpbin</title><h1>httpbin</h1><ul>{items}</ul>",
        content_type="text/html",
    )


@web.middleware
async def for_browsers(request: web.Request, handler: Any) -> web.StreamResponse:
    """Let pages of any origin read the answers, as httpbin does; the mesh's CORS rules go before it."""
    answer: web.StreamResponse = await handler(request)
    if not answer.prepared:
        answer.headers.setdefault("Access-Control-Allow-Origin", request.headers.get("Origin", "*"))
        answer.headers.setdefault("Access-Control-Allow-Credentials", "true")
    return answer


def make_app() -> web.Application:
    """The whole server."""
    app = web.Application(client_max_size=MAX_BYTES, middlewares=[for_browsers])
    for path, handler in (
        ("/", index), ("/get", echo), ("/head", echo), ("/headers", headers), ("/ip", ip),
        ("/user-agent", user_agent), ("/hostname", hostname), ("/html", html), ("/json", document),
        ("/robots.txt", robots), ("/deny", deny), ("/uuid", a_uuid), ("/base64/{text}", decode_base64),
        ("/bytes/{count}", some_bytes), ("/stream-bytes/{count}", stream_bytes),
        ("/stream/{count}", stream), ("/drip", drip), ("/sse", sse), ("/redirect/{count}", redirect),
        ("/relative-redirect/{count}", redirect), ("/absolute-redirect/{count}", redirect),
        ("/cookies", cookies), ("/cookies/set", change_cookies), ("/cookies/delete", change_cookies),
        ("/basic-auth/{user}/{password}", basic_auth), ("/bearer", bearer),
        ("/hidden-basic-auth/{user}/{password}", basic_auth), ("/gzip", compressed),
        ("/deflate", compressed), ("/cache", cache), ("/cache/{age}", cache), ("/etag/{tag}", etag),
        ("/unstable", unstable), ("/websocket/echo", websocket_echo),
    ):  # fmt: skip
        app.router.add_get(path, handler)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        app.router.add_route(method, f"/{method.lower()}", echo)
    for path, handler in (
        ("/anything", echo), ("/anything/{rest:.*}", echo), ("/status/{codes}", status),
        ("/delay/{time}", delay), ("/response-headers", response_headers), ("/redirect-to", redirect_to),
    ):  # fmt: skip
        app.router.add_route("*", path, handler)
    return app


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="httpbin")
    parser.add_argument("port", nargs="?", type=int, default=PORT)
    tls = None
    if "HTTPS_CERT_FILE" in os.environ:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(os.environ["HTTPS_CERT_FILE"], os.environ.get("HTTPS_KEY_FILE"))
    serving.run(make_app(), parser.parse_args().port, tls)


if __name__ == "__main__":
    main()
