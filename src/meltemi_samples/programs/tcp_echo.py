"""tcp-echo: sends every line back with a word before it, on several ports.

``python -m meltemi_samples.programs.tcp_echo 9000,9001,9002 hello``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal

from meltemi_samples.programs import serving

LINE_LIMIT = 1 << 20
log = logging.getLogger("tcp-echo")


async def answer(word: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection until its client ends it."""
    peer = writer.get_extra_info("peername")
    try:
        while line := await reader.readline():
            log.info("%s: %r", peer, line)
            writer.write(word.encode() + b" " + line)
            await writer.drain()
    except (OSError, ValueError) as error:  # gone, or a line beyond the limit
        log.info("%s: %s", peer, error)
    finally:
        writer.close()


async def serve(ports: list[int], word: str) -> None:
    """Listen on all ports until SIGTERM."""
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    servers = [
        await asyncio.start_server(lambda r, w: answer(word, r, w), port=port, limit=LINE_LIMIT)
        for port in ports
    ]
    log.info("listening on %s", ", ".join(map(str, ports)))
    await over.wait()
    for server in servers:
        server.close()


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="tcp-echo")
    parser.add_argument("ports", help="one, or several with commas between them")
    parser.add_argument("word", help="stands before every line that goes back")
    arguments = parser.parse_args()
    serving.start_logging()
    asyncio.run(serve([int(port) for port in arguments.ports.split(",")], arguments.word))


if __name__ == "__main__":
    main()
