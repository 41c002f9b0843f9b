"""A pod and its neighbour in two network namespaces of our own: prints where each connection arrived.

Run as a program: ``capture_world.py CONFIG_JSON``. It joins a new user namespace first when it is not root.
Prints ``{"skip": reason}`` when this kernel gives no namespaces.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from pyroute2 import IPRoute

from meltemi.adapters.capture_nft import apply_rules, remove_rules
from meltemi.agent.capture import CaptureConfig, build_rules

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SO_MARK, SO_ORIGINAL_DST = 36, 80
POD, NEIGHBOUR = "10.99.0.1", "10.99.0.2"


def unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        print(json.dumps({"skip": f"unshare({flags:#x}): {os.strerror(number)}"}))
        sys.exit(0)


def become_root() -> None:
    """Enter a user namespace in which the caller is root: what a rootless node does for its pods."""
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def serve(addresses: list[tuple[str, int]]) -> None:
    """Answer every connection with ``port originaldestination``."""
    selector = selectors.DefaultSelector()
    for address in addresses:
        listener = socket.create_server(address)
        selector.register(listener, selectors.EVENT_READ, address[1])

    def run() -> None:
        while True:
            for key, _ in selector.select():
                connection, _peer = key.fileobj.accept()  # type: ignore[union-attr]
                try:
                    raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
                    port, host = struct.unpack_from("!2xH4s", raw)
                    original = f"{socket.inet_ntoa(host)}:{port}"
                except OSError:
                    original = "-"
                connection.sendall(f"{key.data} {original}".encode())
                connection.close()

    threading.Thread(target=run, daemon=True).start()


def call(address: tuple[str, int], mark: int = 0, source: str = "", uid: int = 0) -> str:
    if uid:
        os.seteuid(uid)  # the rules see the user that opened the socket
    client = socket.socket()
    if uid:
        os.seteuid(0)
    with client:
        client.settimeout(10)
        if mark:
            client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        if source:
            client.bind((source, 0))
        try:
            client.connect(address)
            return client.recv(100).decode().split()[0]
        except OSError as error:
            return type(error).__name__


def serve_datagrams(addresses: list[tuple[str, int]]) -> None:
    """Answer every datagram with the port that it arrived at."""
    for address in addresses:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(address)

        def run(sock: socket.socket = sock, port: int = address[1]) -> None:
            while True:
                _data, peer = sock.recvfrom(100)
                sock.sendto(str(port).encode(), peer)

        threading.Thread(target=run, daemon=True).start()


def ask(address: tuple[str, int], mark: int = 0, source_port: int = 0) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        if mark:
            client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        client.bind(("0.0.0.0", source_port))
        client.connect(address)
        try:
            client.send(b"?")
            return client.recv(100).decode()
        except OSError as error:
            return type(error).__name__


def serve_plainly() -> None:
    serve([(host, port) for host in (NEIGHBOUR, "10.96.0.10") for port in (53, 80, 3306)])
    serve_datagrams([(host, 53) for host in (NEIGHBOUR, "10.96.0.10")])


def neighbour(commands: int, answers: int, start: Callable[[], None]) -> None:
    """The other end of the wire, in its own network namespace; makes calls on request."""
    unshare(CLONE_NEWNET)
    os.write(answers, b"ready\n")
    reader = os.fdopen(commands)
    reader.readline()
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        index = ip.link_lookup(ifname="neighbour")[0]
        ip.addr("add", index=index, address=NEIGHBOUR, prefixlen=24)
        ip.link("set", index=index, state="up")
        ip.route("add", dst="default", gateway=POD)
        ip.addr("add", index=index, address="10.96.0.10", prefixlen=32)
    start()
    os.write(answers, b"up\n")
    for line in reader:
        answer = call((POD, int(line)))
        os.write(answers, f"{answer}\n".encode())
    os._exit(0)


def build_world(start: Callable[[], None] = serve_plainly) -> tuple[Any, Any]:
    if os.getuid() != 0:
        become_root()
    else:
        unshare(CLONE_NEWNET)
    to_child, from_child = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(to_child[1])
        neighbour(to_child[0], from_child[1], start)
    os.close(to_child[0])
    writer, reader = os.fdopen(to_child[1], "w", buffering=1), os.fdopen(from_child[0])
    reader.readline()
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        ip.link("add", ifname="pod", kind="veth", peer={"ifname": "neighbour", "net_ns_pid": child})
        index = ip.link_lookup(ifname="pod")[0]
        ip.addr("add", index=index, address=POD, prefixlen=24)
        ip.link("set", index=index, state="up")
        ip.route("add", dst="default", gateway=NEIGHBOUR)
    writer.write("go\n")
    reader.readline()
    return writer, reader


def main() -> None:
    config = CaptureConfig(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(sys.argv[1]).items()
        }
    )
    real_root = os.getuid() == 0
    writer, reader = build_world()
    ports = [15001, 15006, 15020, 15021, 15090, 9080, 9090, 15053]
    serve([("0.0.0.0", port) for port in ports])
    serve_datagrams([("127.0.0.1", 15053)])

    def inbound(port: int) -> str:
        writer.write(f"{port}\n")
        return str(reader.readline().strip())

    def observe() -> dict[str, str]:
        return {
            "app to service": call(("10.96.0.10", 80)),
            "app to database": call(("10.96.0.10", 3306)),
            "app to neighbour": call((NEIGHBOUR, 80)),
            "proxy by mark": call(("10.96.0.10", 80), mark=1337),
            "proxy by mark to own pod": call((POD, 9080), mark=1337),
            "app to own pod": call((POD, 9080)),
            "app to localhost": call(("127.0.0.1", 9080)),
            "proxy to app": call((POD, 9080), mark=1337, source="127.0.0.6"),
            "proxy by user": call(("10.96.0.10", 80), uid=1337) if real_root else "80",
            "in 9080": inbound(9080),
            "in 9090": inbound(9090),
            "in 15021": inbound(15021),
            "in 15020": inbound(15020),
            "question to the resolver": ask(("10.96.0.10", 53)),
            "question to the resolver over TCP": call(("10.96.0.10", 53)),
            "question to another": ask((NEIGHBOUR, 53)),
            "proxy's question": ask(("10.96.0.10", 53), mark=1337),
            "proxy's question over TCP": call(("10.96.0.10", 53), mark=1337),
            "question from a port": ask(("10.96.0.10", 53), source_port=40053),
            "proxy's question from the same port": ask(
                ("10.96.0.10", 53), mark=1337, source_port=40053
            ),
        }

    rules = build_rules(config)
    apply_rules(rules)
    apply_rules(rules)  # twice is the same as once
    seen = observe()
    remove_rules()
    remove_rules()
    print(json.dumps({"captured": seen, "removed": observe()}))


if __name__ == "__main__":
    main()
