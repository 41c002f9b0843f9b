"""grpc-echo: a gRPC server that says who it is, and a client for it.

``grpc_echo server [port]`` (7070) serves ``proto.EchoTestService/Echo`` and gRPC's health service; ``grpc_echo call
HOST:PORT [message] [--count N] [--timeout S] [--metadata NAME=VALUE]`` calls it over one connection and prints an answer a
call. Environment of the server: SERVICE_VERSION (v1). A message ``fail`` gets UNAVAILABLE.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

# One string in field 1: the form of EchoRequest and of EchoResponse.
from google.protobuf.wrappers_pb2 import StringValue

from meltemi_samples.programs import serving

PORT = 7070
SERVICE = "proto.EchoTestService"
HEALTH = "grpc.health.v1.Health"
SERVING = b"\x08\x01"
GRACE_S = 10.0


def echo(request: StringValue, context: grpc.ServicerContext) -> StringValue:
    """Who answered, and what came."""
    if request.value == "fail":
        context.abort(grpc.StatusCode.UNAVAILABLE, "asked to fail")
    lines = [
        f"ServiceVersion={os.environ.get('SERVICE_VERSION', 'v1')}",
        f"Hostname={os.environ.get('HOSTNAME', socket.gethostname())}",
        *(f"Metadata={name}:{value}" for name, value in context.invocation_metadata() or ()),
        f"Echo={request.value}",
    ]
    return StringValue(value="\n".join(lines))


def serve(port: int) -> None:
    """Until SIGTERM; calls in flight are answered before it ends."""
    server = grpc.server(ThreadPoolExecutor(16))
    call = grpc.unary_unary_rpc_method_handler(
        echo, StringValue.FromString, StringValue.SerializeToString
    )
    check = grpc.unary_unary_rpc_method_handler(lambda *_: SERVING)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, {"Echo": call}),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check}),
        )
    )
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    serving.log.info("listening on %d", port)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(GRACE_S).wait()


def call(flags: argparse.Namespace) -> int:
    """Print the answers; 1 when one call failed."""
    metadata = [tuple(pair.split("=", 1)) for pair in flags.metadata]
    failed = False
    with grpc.insecure_channel(flags.target) as channel:
        method = channel.unary_unary(
            f"/{SERVICE}/Echo", StringValue.SerializeToString, StringValue.FromString
        )
        for _ in range(flags.count):
            try:
                request = StringValue(value=flags.message)
                print(method(request, timeout=flags.timeout, metadata=metadata).value)
            except grpc.RpcError as error:
                failed = True
                print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """The exit code of the command."""
    parser = argparse.ArgumentParser(prog="grpc-echo")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server")
    server.add_argument("port", nargs="?", type=int, default=PORT)
    client = commands.add_parser("call")
    client.add_argument("target")
    client.add_argument("message", nargs="?", default="hello")
    client.add_argument("--count", type=int, default=1)
    client.add_argument("--timeout", type=float, default=10.0)
    client.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE")
    flags = parser.parse_args()
    if flags.command == "call":
        return call(flags)
    serving.start_logging()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    serve(flags.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
