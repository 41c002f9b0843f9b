"""A gRPC channel to istiod for the agent's short-lived children; nothing that lives as long as its pod imports this."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from meltemi.adapters.agent_call import IstiodCall

_SO_MARK = 36


class RequestError(Exception):
    """The request cannot succeed as it is; the text says why."""


def _read(path: str, what: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"{what} {path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise RequestError(f"{what} {path} is empty")
    return content


@contextmanager
def open_channel(call: IstiodCall) -> Iterator[tuple[grpc.Channel, list[tuple[str, str]]]]:
    """The channel, and the metadata that identifies this pod. Turns gRPC's errors into RequestError."""
    metadata = []
    if call.token_file:
        token = _read(call.token_file, "the token file").decode().strip()
        metadata.append(("authorization", f"Bearer {token}"))
    relay = _Relay(call)
    options = [("grpc.default_authority", call.server_name)]
    if call.plaintext:
        channel = grpc.insecure_channel(relay.target, options)
    else:
        options.append(("grpc.ssl_target_name_override", call.server_name))
        channel = grpc.secure_channel(relay.target, _credentials(call), options)
    with channel:
        try:
            yield channel, metadata
        except grpc.RpcError as error:
            raise RequestError(_explain(call, error, relay.problem)) from error


def _credentials(call: IstiodCall) -> grpc.ChannelCredentials:
    if call.certificate:
        pair = (call.key.encode(), call.certificate.encode())
        return grpc.ssl_channel_credentials(call.trusted.encode(), *pair)
    return grpc.ssl_channel_credentials(_read(call.root_file, "the root certificate"))


def _explain(call: IstiodCall, error: grpc.RpcError, problem: str) -> str:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED and call.certificate:
        return f"istiod at {call.address} does not accept this proxy's certificate: {details}"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return (
            f"istiod at {call.address} does not accept the token in {call.token_file}: {details} "
            "(an expired token, or one for another audience than istio-ca)"
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return f"istiod at {call.address} does not permit it: {details}"
    if problem:
        return f"istiod at {call.address} cannot be reached: {problem}"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return (
            f"istiod at {call.address} has a certificate that {call.root_file} does not verify "
            f"for {call.server_name}: {details}"
        )
    return f"istiod at {call.address} answered {code.name}: {details}"


class _Relay:
    """A local socket whose other end is istiod, on a connection that carries the socket mark.

    gRPC offers no way to mark its own sockets, and traffic capture would send an unmarked one to an Envoy
    that does not run yet. It also resolves the name as every other program of the pod does.
    """

    def __init__(self, call: IstiodCall) -> None:
        self.call, self.problem = call, ""
        host, _, port = call.address.rpartition(":")
        self.address = (host.strip("[]"), int(port))
        # An abstract name needs no file and is seen in this network namespace only.
        name = f"meltemi-agent-{os.getpid()}-{os.urandom(8).hex()}"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"\0{name}")
        self.listener.listen()
        self.target = f"unix-abstract:{name}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                far = self._connect()
            except OSError as error:
                self.problem = error.strerror or str(error)
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def _connect(self) -> socket.socket:
        problem: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            *self.address, type=socket.SOCK_STREAM
        ):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.call.deadline_s)
                if self.call.mark:
                    connection.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.call.mark)
                connection.connect(address)
            except OSError as error:
                connection.close()
                problem = error
                continue
            connection.settimeout(None)
            return connection
        raise problem


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            sink.sendall(piece)
    except OSError:
        pass
    finally:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
