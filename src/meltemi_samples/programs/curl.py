"""curl for machines that have none: the flags, outputs and exit codes that tasks and scripts use.

Speaks HTTP/1.1 and HTTP/2 over TCP and TLS. Unknown flags are an error (2), as with curl itself.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from meltemi_samples.programs import curl_wire as wire
from meltemi_samples.programs.curl_flags import Flags, parse
from meltemi_samples.programs.curl_wire import Failure, Head, Request

REDIRECTS = {301, 302, 303, 307, 308}


@dataclass
class Transfer:
    """What ``-w`` can tell about one URL."""

    url: str
    head: Head | None = None
    size: int = 0
    redirects: int = 0
    num_connects: int = 0
    redirect_url: str = ""
    remote: tuple[str, int] = ("", 0)
    local: tuple[str, int] = ("", 0)
    started: float = field(default_factory=time.monotonic)
    marks: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Remember when a step was done."""
        self.marks[name] = time.monotonic() - self.started

    def variables(self) -> dict[str, str]:
        """Names as in ``%{name}``."""
        code = f"{self.head.status:03d}" if self.head else "000"
        kind = self.head.get("content-type") if self.head else ""
        times = {f"time_{name}": f"{self.marks.get(name, 0.0):.6f}" for name in
                 ("namelookup", "connect", "appconnect", "pretransfer", "starttransfer", "total")}  # fmt: skip
        return times | {
            "http_code": code,
            "response_code": code,
            "http_version": self.head.version if self.head else "0",
            "content_type": kind,
            "size_download": str(self.size),
            "num_redirects": str(self.redirects),
            "num_connects": str(self.num_connects),
            "redirect_url": self.redirect_url,
            "url_effective": self.url,
            "url": self.url,
            "scheme": urlsplit(self.url).scheme.upper(),
            "remote_ip": self.remote[0],
            "remote_port": str(self.remote[1]),
            "local_ip": self.local[0],
            "local_port": str(self.local[1]),
        }


def fill(template: str, values: dict[str, str]) -> str:
    """The text of ``-w``: variables, ``%%`` and backslash escapes."""
    for name, text in (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r")):
        template = template.replace(name, text)
    found = ""
    while template:
        before, percent, rest = template.partition("%")
        found += before
        if not percent:
            break
        if rest.startswith("%"):
            found, template = found + "%", rest[1:]
        elif rest.startswith("{") and "}" in rest:
            name, _, template = rest[1:].partition("}")
            found += values.get(name, "")
        else:
            found, template = found + "%", rest
    return found


class Curl:
    """One run: the URLs one after another."""

    def __init__(self, flags: Flags, out: BinaryIO) -> None:
        self.flags = flags
        self.out = out

    def note(self, sign: str, text: str) -> None:
        """A line of ``-v``."""
        if self.flags.verbose:
            print(f"{sign} {text}", file=sys.stderr)

    def run(self) -> int:
        """The exit code of the last URL that failed, or 0."""
        code = 0
        for index, url in enumerate(self.flags.urls):
            if "://" not in url:
                url = f"http://{url}"
            transfer = Transfer(url)
            problem: Failure | None = None
            try:
                self.follow(transfer, self.flags.outputs[index : index + 1])
            except Failure as error:
                problem, code = error, error.code
            transfer.mark("total")
            if problem and (not self.flags.silent or self.flags.show_error):
                print(f"curl: ({problem.code}) {problem}", file=sys.stderr)
            if self.flags.write_out:
                self.out.write(fill(self.flags.write_out, transfer.variables()).encode())
        self.out.flush()
        return code

    def follow(self, transfer: Transfer, output: list[str]) -> None:
        """One URL, and where it leads to with ``-L``."""
        method, body = self.flags.method, self.flags.body
        with contextlib.ExitStack() as opened:
            sink = self.out
            if output and output[0] != "-":
                sink = opened.enter_context(Path(output[0]).open("wb"))
            while True:
                target = urlsplit(transfer.url)
                if target.scheme not in ("http", "https", "telnet"):
                    raise Failure(1, f'Protocol "{target.scheme}" not supported or disabled')
                if not target.hostname:
                    raise Failure(3, "URL using bad/illegal format or missing URL")
                head = self.exchange(transfer, target, method, body, sink)
                where = head.get("location")
                if head.status not in REDIRECTS or not where:
                    break
                transfer.redirect_url = urljoin(transfer.url, where)
                if not self.flags.location:
                    break
                transfer.redirects += 1
                if transfer.redirects > self.flags.max_redirects:
                    raise Failure(47, f"Maximum ({self.flags.max_redirects}) redirects followed")
                if head.status in (301, 302, 303) and method == "POST":
                    method, body = "GET", None
                transfer.url, transfer.redirect_url = transfer.redirect_url, ""
            if self.flags.fail and head.status >= 400:
                raise Failure(22, f"The requested URL returned error: {head.status}")

    def exchange(
        self,
        transfer: Transfer,
        target: SplitResult,
        method: str,
        body: bytes | None,
        sink: BinaryIO,
    ) -> Head:
        """One request and its answer."""
        flags, deadline = self.flags, None
        if flags.max_time:
            deadline = transfer.started + flags.max_time
        connection = self.connect(transfer, target, deadline)
        with connection:
            if target.scheme == "telnet":
                wire.telnet(connection, sys.stdin.buffer, sink)
                return Head("0", 200, "", [])
            request = Request(method, target, self.headers(target, body), body)
            transfer.mark("pretransfer")

            def begin(head: Head) -> None:
                transfer.head = head
                transfer.mark("starttransfer")
                self.show(head, sink)

            def data(chunk: bytes) -> None:
                transfer.size += len(chunk)
                if not flags.head_only and not (flags.fail and transfer.head.status >= 400):  # type: ignore[union-attr]
                    redirected = flags.location and transfer.head.status in REDIRECTS  # type: ignore[union-attr]
                    if not redirected:
                        sink.write(chunk)
                        sink.flush()

            speak = wire.http2 if wire.speaks_http2(connection, flags) else wire.http1
            return speak(connection, request, begin, data, self.note)

    def connect(
        self, transfer: Transfer, target: SplitResult, deadline: float | None
    ) -> socket.socket:
        """A connection, with TLS where the URL says so."""
        host = target.hostname or ""
        port = target.port or {"https": 443, "telnet": 23}.get(target.scheme, 80)
        place = self.flags.place(host, port)
        self.note("*", f"  Trying {place[0]}:{place[1]}...")
        connection = wire.connect(place, self.flags, deadline)
        transfer.num_connects += 1
        transfer.mark("namelookup")
        transfer.mark("connect")
        transfer.remote = connection.getpeername()[:2]
        transfer.local = connection.getsockname()[:2]
        self.note("*", f"Connected to {host} ({transfer.remote[0]}) port {transfer.remote[1]}")
        if target.scheme == "https":
            connection = wire.secure(connection, host, self.flags)
            transfer.mark("appconnect")
            for line in wire.describe_tls(connection):
                self.note("*", line)
        return connection

    def headers(self, target: SplitResult, body: bytes | None) -> list[tuple[str, str]]:
        """Those of the request: curl's own, changed by ``-H`` (``Name:`` takes one away)."""
        flags = self.flags
        host = target.netloc.rpartition("@")[2]
        default = {"Host": host, "User-Agent": flags.user_agent, "Accept": "*/*"}
        user = flags.user or target.netloc.rpartition("@")[0]
        if user:
            default["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        if flags.cookie:
            default["Cookie"] = flags.cookie
        if flags.compressed:
            default["Accept-Encoding"] = "identity"
        if body is not None:
            default["Content-Length"] = str(len(body))
            default["Content-Type"] = flags.content_type
        given: list[tuple[str, str]] = []
        for line in flags.headers:
            name, colon, value = line.partition(":")
            if not colon and line.endswith(";"):
                name, value = line[:-1], " "
            for known in [known for known in default if known.lower() == name.strip().lower()]:
                if known == "Host" and value.strip():
                    default["Host"] = value.strip()  # it stays first
                    value = ""
                else:
                    del default[known]
            if value:
                given.append((name.strip(), value.strip()))
        return [*default.items(), *given]

    def show(self, head: Head, sink: BinaryIO) -> None:
        """Status line and headers, for ``-i``, ``-I``, ``-D`` and ``-v``."""
        version = "HTTP/2" if head.version == "2" else f"HTTP/{head.version}"
        lines = [
            f"{version} {head.status} {head.reason}".rstrip() + (" " if version == "HTTP/2" else "")
        ]
        lines += [f"{name}: {value}" for name, value in head.headers]
        for line in [*lines, ""]:
            self.note("<", line)
        text = "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
        if self.flags.include or self.flags.head_only:
            sink.write(text)
        if self.flags.dump_header == "-":
            self.out.write(text)
        elif self.flags.dump_header:
            with Path(self.flags.dump_header).open("ab") as file:
                file.write(text)


def main(words: list[str], out: BinaryIO) -> int:
    """Run one command line; the exit code is curl's."""
    try:
        flags = parse(words)
    except Failure as error:
        print(f"curl: {error}", file=sys.stderr)
        return error.code
    if flags.version:
        print(
            "curl 8.16.0 (a small replacement) h11 h2\nProtocols: http https telnet\nFeatures: HTTP2 SSL"
        )
        return 0
    try:
        return Curl(flags, out).run()
    except BrokenPipeError:
        return 23


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout.buffer))
