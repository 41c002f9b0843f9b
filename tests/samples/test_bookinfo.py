"""Bookinfo's services, run as the processes that they are in a pod."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar

import pytest

Start = Callable[..., str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a service with an environment; its base URL when it is healthy."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(name: str, **environment: str) -> str:
        port = free_port()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", f"meltemi_samples.bookinfo.src.{name}", str(port)],
                env={**os.environ, **environment},
                stderr=subprocess.DEVNULL,
            )
        )
        base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{base}/health", timeout=1).close()
                return base
            except OSError:
                assert processes[-1].poll() is None, f"{name} ended"
                assert time.monotonic() < deadline, f"{name} is not healthy"
                time.sleep(0.02)

    yield run
    for process in processes:
        process.terminate()
    for process in processes:
        assert process.wait(10) is not None


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        url, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def at(base: str, prefix: str) -> dict[str, str]:
    host, port = base.removeprefix("http://").split(":")
    return {f"{prefix}_HOSTNAME": host, f"{prefix}_SERVICE_PORT": port}


def test_reviews_v1_has_no_stars_v2_black_v3_red(start: Start) -> None:
    ratings = start("ratings")
    v1 = start("reviews")
    assert "rating" not in get(f"{v1}/reviews/0")[1]
    for color in ("black", "red"):
        base = start("reviews", ENABLE_RATINGS="true", STAR_COLOR=color, **at(ratings, "RATINGS"))
        status, body = get(f"{base}/reviews/0")
        assert (status, body.count(f'"color":"{color}"')) == (200, 2)


def test_a_failed_ratings_call_shows_in_reviews(start: Start) -> None:
    base = start(
        "reviews", ENABLE_RATINGS="true", RATINGS_HOSTNAME="127.0.0.1", RATINGS_SERVICE_PORT="1"
    )
    status, body = get(f"{base}/reviews/0")
    assert (status, body.count("Ratings service is currently unavailable")) == (200, 2)


def test_posted_ratings_are_kept_and_bad_ones_refused(start: Start) -> None:
    base = start("ratings")

    def post(body: bytes) -> int:
        try:
            request = urllib.request.Request(f"{base}/ratings/0", data=body, method="POST")
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert post(b'{"Reviewer1":1}') == 200
    assert '"Reviewer1":1' in get(f"{base}/ratings/0")[1]
    assert [post(body) for body in (b"{", b"[]", b'{"a":9}')] == [400, 400, 400]
    assert get(f"{base}/ratings/x")[0] == 400


def test_the_page_shows_details_reviews_and_what_failed(start: Start) -> None:
    details, reviews = start("details"), start("reviews")
    page = start("productpage", **at(details, "DETAILS"), **at(reviews, "REVIEWS"))
    status, body = get(f"{page}/productpage")
    assert status == 200
    assert "1234567890" in body
    assert "Reviews served by" in body
    broken = start(
        "productpage",
        **at(details, "DETAILS"),
        REVIEWS_HOSTNAME="127.0.0.1",
        REVIEWS_SERVICE_PORT="1",
    )
    assert (
        "Sorry, product reviews are currently unavailable for this book."
        in get(f"{broken}/productpage")[1]
    )


def test_login_reaches_the_other_services_as_end_user(start: Start) -> None:
    """A neighbour that echoes the header it got stands in for reviews."""
    import http.server
    import threading

    seen: list[str | None] = []

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("end-user"))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = str(server.server_address[1])
    page = start(
        "productpage",
        REVIEWS_HOSTNAME="127.0.0.1",
        REVIEWS_SERVICE_PORT=port,
        DETAILS_HOSTNAME="127.0.0.1",
        DETAILS_SERVICE_PORT=port,
    )
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    opener.open(f"{page}/login", data=b"username=jason&passwd=x", timeout=20).close()
    seen.clear()
    with opener.open(f"{page}/productpage", timeout=20) as answer:
        assert "jason" in answer.read().decode()
    # One try of details and two of reviews, each in jason's name.
    assert seen == ["jason", "jason", "jason"]
    forged = get(f"{page}/productpage", cookie="session=amFzb24=.AAAA")[1]
    assert "jason" not in forged
    server.shutdown()


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/metrics", "/api/v1/products", "/static/bookinfo.css"]
)
def test_the_other_pages_answer(start: Start, path: str) -> None:
    assert get(start("productpage") + path)[0] == 200
