"""The command line of our curl: words -> ``Flags``. An unknown or incomplete flag raises ``Failure`` with curl's code 2."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from meltemi_samples.programs.curl_wire import Failure

# flag(s), name, what argparse shall do
_SWITCHES = (
    ("-s", "--silent"), ("-S", "--show-error"), ("-I", "--head"), ("-i", "--include"), ("-k", "--insecure"),
    ("-v", "--verbose"), ("-L", "--location"), ("-f", "--fail"), ("-G", "--get"), ("-4", "--ipv4"),
    ("-6", "--ipv6"), ("-N", "--no-buffer"), ("-#", "--progress-bar"), ("-g", "--globoff"),
    ("-V", "--version"), ("--compressed",), ("--http2",), ("--http2-prior-knowledge",), ("--http1.1",),
    ("--no-progress-meter",), ("--tlsv1.2",), ("--tlsv1.3",), ("--no-keepalive",), ("--path-as-is",),
)  # fmt: skip
_VALUES = (
    ("-o", "--output"), ("-w", "--write-out"), ("-X", "--request"), ("-A", "--user-agent"), ("-u", "--user"),
    ("-b", "--cookie"), ("-e", "--referer"), ("-D", "--dump-header"), ("-m", "--max-time"),
    ("--connect-timeout",), ("--cacert",), ("-E", "--cert"), ("--key",), ("--max-redirs",), ("--url",),
    ("--tls-max",),
)  # fmt: skip
_LISTS = (
    ("-H", "--header"), ("-d", "--data"), ("--data-raw",), ("--data-binary",), ("--data-urlencode",),
    ("--json",), ("--resolve",), ("--connect-to",),
)  # fmt: skip


@dataclass
class Flags:
    """What one command line asks for."""

    urls: list[str]
    outputs: list[str]
    method: str
    body: bytes | None
    content_type: str
    headers: list[str]
    silent: bool = False
    show_error: bool = False
    include: bool = False
    head_only: bool = False
    insecure: bool = False
    verbose: bool = False
    location: bool = False
    fail: bool = False
    compressed: bool = False
    version: bool = False
    http2: bool = False
    prior_knowledge: bool = False
    http1: bool = False
    min_tls: str = ""
    max_tls: str = ""
    write_out: str = ""
    user_agent: str = ""
    user: str = ""
    cookie: str = ""
    dump_header: str = ""
    max_time: float = 0.0
    connect_timeout: float = 0.0
    max_redirects: int = 50
    cacert: str = ""
    cert: str = ""
    key: str = ""
    family: str = ""
    resolve: dict[tuple[str, int], str] = field(default_factory=dict)
    connect_to: list[tuple[str, str, str, str]] = field(default_factory=list)

    def place(self, host: str, port: int) -> tuple[str, int]:
        """Where to connect to for a URL's host and port."""
        for from_host, from_port, to_host, to_port in self.connect_to:
            if from_host in ("", host) and from_port in ("", str(port)):
                host, port = to_host.strip("[]") or host, int(to_port or port)
                break
        return self.resolve.get((host, port)) or self.resolve.get(("*", port)) or host, port


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failure(2, f"{message}\ncurl: try 'curl --help' for more information")


class _Data(argparse.Action):
    """Data of all kinds in the order in which they were given."""

    def __call__(self, _parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        namespace.bodies = [*getattr(namespace, "bodies", []), (option, value)]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="curl", allow_abbrev=False)
    for names in _SWITCHES:
        parser.add_argument(*names, action="store_true")
    for names in _VALUES:
        repeated = names[-1] in ("--output", "--url")
        parser.add_argument(*names, action="append" if repeated else "store")
    for names in _LISTS:
        data = names[-1].startswith("--data") or names[-1] == "--json"
        parser.add_argument(*names, action=_Data if data else "append", default=None)
    parser.add_argument("urls", nargs="*")
    return parser


def _read(text: str, *, keep_lines: bool) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        raw = sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()
    except OSError as error:
        raise Failure(26, f"Failed to open {text[1:]}: {error.strerror}") from error
    return raw if keep_lines else raw.replace(b"\r", b"").replace(b"\n", b"")


def _body(bodies: list[tuple[str, str]]) -> tuple[bytes | None, str]:
    """(body, its content type) of all ``-d`` and their relatives."""
    if not bodies:
        return None, ""
    kind = "application/x-www-form-urlencoded"
    parts = []
    for option, text in bodies:
        if option == "--data-urlencode":
            name, equals, value = text.partition("=")
            parts.append((f"{name}={quote(value)}" if name else quote(value)).encode()
                         if equals else quote(text).encode())  # fmt: skip
        elif option == "--data-raw":
            parts.append(text.encode())
        else:
            parts.append(_read(text, keep_lines=option in ("--data-binary", "--json")))
        if option == "--json":
            kind = "application/json"
    return (b"" if kind == "application/json" else b"&").join(parts), kind


def _resolve(entries: list[str]) -> dict[tuple[str, int], str]:
    found = {}
    for entry in entries:
        try:
            host, port, address = entry.lstrip("+").split(":", 2)
            found[host, int(port)] = address.split(",")[0].strip("[]")
        except ValueError:
            raise Failure(49, f"Couldn't parse CURLOPT_RESOLVE entry '{entry}'") from None
    return found


def _connect_to(entries: list[str]) -> list[tuple[str, str, str, str]]:
    found = []
    for entry in entries:
        parts = entry.split(":")
        if len(parts) != 4:
            raise Failure(49, f"Syntax error in CURLOPT_CONNECT_TO entry '{entry}'")
        found.append((parts[0], parts[1], parts[2], parts[3]))
    return found


def expand(url: str) -> list[str]:
    """The URLs of a pattern: ``[1-20]``, ``[01-10:3]`` and ``{a,b}``."""
    found = re.search(r"\[(\d+)-(\d+)(?::(\d+))?\]|\{([^{}]*)\}", url)
    if not found:
        return [url]
    first, last, step, words = found.groups()
    if words is not None:
        parts = words.split(",")
    else:
        numbers = range(int(first), int(last) + 1, int(step or 1))
        parts = [str(number).zfill(len(first) if first[0] == "0" else 0) for number in numbers]
    before, after = url[: found.start()], url[found.end() :]
    return [one for part in parts for one in expand(before + part + after)]


def _seconds(text: str | None, flag: str) -> float:
    try:
        return float(text or 0)
    except ValueError:
        raise Failure(2, f"option {flag}: expected a proper numerical parameter") from None


def parse(words: list[str]) -> Flags:
    """The flags of a command line. Raises Failure."""
    found = _parser().parse_intermixed_args(words)
    urls = [*(found.url or []), *found.urls]
    if not urls and not found.version:
        raise Failure(2, "no URL specified!\ncurl: try 'curl --help' for more information")
    if not found.globoff:
        urls = [one for url in urls for one in expand(url)]
    body, kind = _body(getattr(found, "bodies", []))
    if found.get and body is not None:
        urls = [f"{url}{'&' if '?' in url else '?'}{body.decode()}" for url in urls]
        body = None
    method = "HEAD" if found.head else "GET" if body is None else "POST"
    headers = list(found.header or [])
    if kind == "application/json" and not any(h.lower().startswith("accept:") for h in headers):
        headers.append("Accept: application/json")
    if found.referer:
        headers.append(f"Referer: {found.referer}")
    return Flags(
        urls=urls,
        outputs=found.output or [],
        method=found.request or method,
        body=body,
        content_type=kind,
        headers=headers,
        silent=found.silent,
        show_error=found.show_error,
        include=found.include,
        head_only=found.head,
        insecure=found.insecure,
        verbose=found.verbose,
        location=found.location,
        fail=found.fail,
        compressed=found.compressed,
        version=found.version,
        http2=found.http2,
        prior_knowledge=found.http2_prior_knowledge,
        http1=getattr(found, "http1.1"),
        min_tls="1.3" if getattr(found, "tlsv1.3") else "1.2" if getattr(found, "tlsv1.2") else "",
        max_tls=found.tls_max or "",
        write_out=found.write_out or "",
        user_agent=found.user_agent or "curl/8.16.0",
        user=found.user or "",
        cookie=found.cookie or "",
        dump_header=found.dump_header or "",
        max_time=_seconds(found.max_time, "--max-time"),
        connect_timeout=_seconds(found.connect_timeout, "--connect-timeout"),
        max_redirects=int(_seconds(found.max_redirs or "50", "--max-redirs")),
        cacert=found.cacert or "",
        cert=found.cert or "",
        key=found.key or "",
        family="4" if found.ipv4 else "6" if found.ipv6 else "",
        resolve=_resolve(found.resolve or []),
        connect_to=_connect_to(found.connect_to or []),
    )
