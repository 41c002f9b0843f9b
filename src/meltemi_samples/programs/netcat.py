"""nc for machines that have none: a connection between a server and the terminal.

``nc [-w seconds] [-v] [-z] host port``. Standard input goes to the server, what it sends to standard output; ends when
the server ends, or -w seconds after both have been silent. -z only looks whether the port is open.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import sys


def copy(connection: socket.socket, silence_s: float | None) -> None:
    """Both directions, until the server ends its own or it is silent for long."""
    with selectors.DefaultSelector() as ready:
        ready.register(connection, selectors.EVENT_READ)
        try:
            ready.register(sys.stdin.fileno(), selectors.EVENT_READ)
        except PermissionError:  # a file or /dev/null: always readable
            connection.sendall(sys.stdin.buffer.read())
            connection.shutdown(socket.SHUT_WR)
        while events := ready.select(silence_s):
            for key, _ in events:
                if key.fileobj is connection:
                    data = connection.recv(1 << 16)
                    if not data:
                        return
                    os.write(sys.stdout.fileno(), data)
                    continue
                data = os.read(sys.stdin.fileno(), 1 << 16)
                if data:
                    connection.sendall(data)
                else:
                    ready.unregister(key.fileobj)
                    connection.shutdown(socket.SHUT_WR)


def main() -> int:
    """Exit code 0, or 1 when there was no connection."""
    parser = argparse.ArgumentParser(prog="nc")
    parser.add_argument("-w", dest="seconds", type=float, metavar="SECONDS")
    parser.add_argument("-v", dest="verbose", action="store_true")
    parser.add_argument("-z", dest="only_look", action="store_true")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    try:
        with socket.create_connection(
            (arguments.host, arguments.port), arguments.seconds
        ) as connection:
            if arguments.verbose:
                print(f"{arguments.host} ({arguments.port}) open", file=sys.stderr)
            if not arguments.only_look:
                copy(connection, arguments.seconds)
    except OSError as error:
        print(f"nc: {arguments.host} ({arguments.port}): {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
