"""The classic tasks inside the mesh, with the samples: circuit breaking, mirroring, locality failover, TCP shifting."""

from __future__ import annotations

import re
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.conftest import Shell, wait_for
from e2e.tasks import CURL, Gateway, code_counts, task

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
HTTPBIN = "samples/httpbin"


def test_circuit_breaking(mesh: Shell) -> None:
    with task(mesh, "circuit-breaking") as own:
        own.apply(f"{HTTPBIN}/httpbin.yaml", f"{HTTPBIN}/sample-client/fortio-deploy.yaml")
        own.ready()
        fortio = "exec deploy/fortio-deploy -c fortio -- /usr/bin/fortio"
        load = f"{fortio} load -c 3 -qps 0 -n 30 -loglevel Warning http://httpbin:8000/get"
        assert "200 OK" in own.kubectl(f"{fortio} curl -quiet http://httpbin:8000/get")
        assert code_counts(own.kubectl(load)) == {200: 30}
        own.apply(f"{HTTPBIN}/httpbin-circuit-breaker.yaml")
        met = wait_for(
            "some refused", lambda: code_counts(own.kubectl(load)), accept=lambda m: 503 in m
        )
        assert set(met) == {200, 503}
        assert sum(met.values()) == 30
        one = f"{fortio} load -c 1 -qps 0 -n 20 -loglevel Warning http://httpbin:8000/get"
        assert code_counts(own.kubectl(one)) == {200: 20}, "one caller at a time is served"
        stats = own.kubectl(
            "exec deploy/fortio-deploy -c istio-proxy -- pilot-agent request GET stats"
        )
        overflow = "cluster.outbound|8000||httpbin.circuit-breaking.svc.cluster.local.upstream_rq_pending_overflow"
        counted = dict(line.split(": ") for line in stats.splitlines() if ": " in line)
        assert int(counted[overflow]) >= met[503]
        # One error, and the only pod is left alone for three minutes.
        own.kubectl(f"{fortio} curl -quiet http://httpbin:8000/status/500", check=False)
        broken = wait_for(
            "ejected", lambda: code_counts(own.kubectl(one)), accept=lambda m: m == {503: 20}
        )
        assert broken == {503: 20}


def test_mirroring(mesh: Shell) -> None:
    with task(mesh, "mirroring") as own:
        own.apply(f"{HTTPBIN}/httpbin-versions.yaml", "samples/curl/curl.yaml")
        own.ready()

        def logged(version: str, path: str) -> int:
            log = own.kubectl(f"logs -l app=httpbin,version={version} -c httpbin --tail=-1")
            return log.count(f"GET {path}?")

        def ask(path: str, times: int) -> None:
            url = f"http://httpbin:8000{path}"
            assert own.curl(f"-o /dev/null -w '%{{http_code}} ' '{url}?[1-{times}]'").split() == (
                ["200"] * times
            )

        def answered_by() -> set[str]:
            answers = own.curl("'http://httpbin:8000/hostname?[1-10]'")
            return set(re.findall(r"httpbin-v[12]", answers))

        own.apply(f"{HTTPBIN}/httpbin-mirror.yaml")
        wait_for("answers of v1 only", answered_by, accept={"httpbin-v1"}.__eq__)
        ask("/anything/first", 10)
        wait_for(
            "ten requests and ten copies",
            lambda: (logged("v1", "/anything/first"), logged("v2", "/anything/first")),
            accept=(10, 10).__eq__,
        )
        # A copy that is answered late, or badly, hurts no one.
        own.kubectl("scale deployment/httpbin-v2 --replicas=0")
        own.kubectl("wait pod -l version=v2 --for=delete --timeout=60s")
        ask("/anything/second", 10)
        assert logged("v1", "/anything/second") == 10


LOCALITIES = ("region1.zone1", "region1.zone2", "region2.zone3")


def test_locality_failover(mesh: Shell) -> None:
    with task(mesh, "locality") as own:
        own.apply("samples/helloworld/helloworld-locality.yaml", "samples/curl/curl.yaml")
        own.kubectl(
            "patch deployment curl --patch "
            """'{"spec":{"template":{"metadata":{"labels":{"istio-locality":"region1.zone1"}}}}}'"""
        )
        own.kubectl("rollout status deployment/curl --timeout=60s")
        own.ready()

        def answers() -> set[str]:
            text = own.curl("'http://helloworld:5000/hello?[1-20]'")
            return {
                line.partition(", ")[0].removeprefix("Hello version: ")
                for line in text.splitlines()
            }

        for here, place in enumerate(LOCALITIES):
            wait_for(f"answers of {place} only", answers, accept={place}.__eq__)
            if here < 2:
                # As the task does it: this place's proxy takes no more connections.
                own.kubectl(
                    f"exec deploy/helloworld-{place} -c istio-proxy -- pilot-agent request POST drain_listeners"
                )


def test_tcp_shifting(mesh: Shell) -> None:
    with task(mesh, "tcp-shifting") as own:
        own.apply("samples/tcp-echo/tcp-echo-services.yaml", "samples/curl/curl.yaml")
        own.apply("samples/tcp-echo/tcp-echo-all-v1.yaml")
        own.ready()
        gateway = Gateway(mesh)
        place = (gateway.host, gateway.port(31400))

        def words(count: int) -> Counter[str]:
            with ThreadPoolExecutor(4) as pool:
                return Counter(pool.map(lambda _: _first_word(place), range(count)))

        wait_for("v1 only", lambda: words(20), accept=lambda seen: set(seen) == {"one"})
        own.apply("samples/tcp-echo/tcp-echo-20-v2.yaml")
        wait_for("some v2", lambda: words(20), accept=lambda seen: "two" in seen)
        seen = words(200)
        assert set(seen) == {"one", "two"}
        # A fifth of 200, five standard deviations around it.
        assert 12 <= seen["two"] <= 68
        # By hand, as the task's reader does it.
        line = f"echo now | {CURL} -s --max-time 1 telnet://{place[0]}:{place[1]}"
        assert mesh(line, check=False).split()[1:] == ["now"]
        inside = own.kubectl("exec deploy/curl -c curl -- sh -c 'echo now | nc -w 1 tcp-echo 9001'")
        assert inside.split()[1] == "now"


def test_grpc_is_balanced_call_by_call(mesh: Shell) -> None:
    with task(mesh, "grpc") as own:
        own.apply("samples/grpc-echo/grpc-echo.yaml")
        own.ready()

        def versions() -> Counter[str]:
            answers = own.kubectl(
                "exec deploy/echo-v1 -c echo -- grpc-echo call echo:7070 ahoy --count 40",
                check=False,
            )
            return Counter(re.findall(r"ServiceVersion=(v\d)", answers))

        # One connection of the client, and yet both pods: the proxy chooses for each call.
        seen = wait_for("both versions", versions, accept=lambda seen: len(seen) == 2)
        assert seen.total() == 40


def _first_word(place: tuple[str, int]) -> str:
    """What tcp-echo puts before a line on a new connection; the reason when there is none."""
    try:
        with socket.create_connection(place, timeout=10) as connection:
            connection.sendall(b"hello\n")
            return connection.makefile().readline().partition(" ")[0]
    except OSError as error:
        return repr(error)
