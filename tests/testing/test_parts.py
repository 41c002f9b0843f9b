"""The plugin's pure parts."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meltemi.model.config import Key
from meltemi.model.origin import Level
from meltemi.registry.offline import complete, read_objects
from meltemi.testing.addresses import Block
from meltemi.testing.distribution import Distribution, acceptance_region
from meltemi.testing.hops import HOP_FORMAT, parse_hops
from meltemi.testing.response import Headers, Response, Sent
from meltemi.testing.sources import Sources
from meltemi.testing.websocket import CLOSE, PING, TEXT, Frames, frame


@given(st.integers(1, 2000), st.floats(0.0, 1.0), st.sampled_from([0.9, 0.99, 0.9999]))
def test_the_expected_count_is_always_accepted(n: int, share: float, confidence: float) -> None:
    low, high = acceptance_region(n, share, confidence)
    assert 0 <= low <= high <= n
    assert low <= round(n * share) <= high


def test_the_region_is_as_wide_as_the_confidence_asks_for() -> None:
    # Known values of the binomial distribution: n = 1000, p = 0.1, both tails 0.025.
    low, high = acceptance_region(1000, 0.1, 0.95)
    assert (low, high) == (82, 119)
    assert acceptance_region(100, 0.0, 0.99) == (0, 0)
    assert acceptance_region(100, 1.0, 0.99) == (100, 100)


def _answers(**counts: int) -> Distribution:
    sent = Sent("", "GET", "http://a/", "http", "a", 80)
    made = Distribution("http://a/")
    for name, count in counts.items():
        body = f'{{"workload": "{name}"}}'.encode()
        made.responses += [Response(sent, status=200, body=body) for _ in range(count)]
    return made


def test_a_share_that_is_off_fails_and_states_its_confidence() -> None:
    found = _answers(v1=700, v2=300)
    found.assert_share("v1", 0.7)
    assert found.share("v2") == 0.3
    with pytest.raises(
        AssertionError, match=r"300 of 1000 \(30.0%\) for 'v2'; 10.0% was expected"
    ) as e:
        found.assert_shares({"v1": 0.9, "v2": 0.1})
    assert "confidence 99.99%" in str(e.value)


def test_hops_come_in_the_requests_order() -> None:
    fields = HOP_FORMAT.count("%") // 2
    server = "\t".join(["b.ns", "inbound", *["-"] * fields])
    client = "\t".join(["a.ns", "outbound", "route x", *["-"] * (fields - 1)])
    hops = parse_hops([server, client, "garbage"])
    assert [hop.proxy for hop in hops] == ["a.ns", "b.ns"]
    assert hops[0].route == "route x"
    assert hops[1].route == ""


def test_headers_ignore_case_and_join() -> None:
    headers = Headers([("X-A", "1"), ("x-a", "2")])
    assert headers["X-a"] == "1, 2"
    assert headers.all("X-A") == ["1", "2"]
    assert headers.get("y") is None


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 40), st.booleans())
def test_frames_survive_any_cut(messages: list[bytes], step: int, masked: bool) -> None:
    data = b"".join(frame(m, TEXT, b"abcd" if masked else b"") for m in messages)
    reader, found = Frames(), []
    for start in range(0, len(data), step):
        found += reader.feed(data[start : start + step])
    assert found == [(TEXT, m) for m in messages]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frames_of_every_length_form(size: int) -> None:
    payload = random.Random(1).randbytes(size)
    assert Frames().feed(frame(payload, TEXT, os.urandom(4))) == [(TEXT, payload)]
    assert Frames().feed(frame(b"", PING) + frame(b"", CLOSE)) == [(PING, b""), (CLOSE, b"")]


def test_blocks_are_not_shared() -> None:
    first, second = Block(), Block()
    try:
        assert first.number != second.number
        assert first.address("proxy", "a") == first.address("proxy", "a")
        assert first.address("proxy", "a") != first.address("app", "a")
        assert first.owns(first.address("outside", "x"))
        assert not second.owns(first.address("outside", "x"))
    finally:
        first.close()
        second.close()


def test_ports_that_cannot_be_bound_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELTEMI_TESTING_LOWEST_PORT", "1024")
    block = Block()
    try:
        moved = block.port(80)
        assert moved >= 1024
        assert block.port(80) == moved
        assert block.logical_port(moved) == 80
        assert block.port(9080) == block.logical_port(9080) == 9080
    finally:
        block.close()


def test_yaml_in_a_test_has_the_lines_of_its_file() -> None:
    sources = Sources()
    text = """
apiVersion: v1
kind: Service
metadata: {name: placed}
"""
    ((placed, name),) = sources.read(text, Path())
    raws, _ = sources.parse(placed, name)
    lines = Path(__file__).read_text().splitlines()
    line = raws[0].source_map.lines["metadata.name"][0]
    assert name.endswith("test_parts.py")
    assert lines[line - 1] == "metadata: {name: placed}"


def test_composed_yaml_names_the_call() -> None:
    ((_, name),) = Sources().read("kind: " + "Service\n" * 1 + f"x: {os.getpid()}\n", Path())
    assert "test_parts.py:" in name


def test_missing_files_are_told() -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Sources().read("nowhere.yaml", Path("/tmp"))


def test_one_wrong_object_leaves_the_others() -> None:
    raws, _ = read_objects(
        [
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: bad}\n"
                "spec: {template: {spec: {containers: 7}}}\n---\n"
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: good}\n"
                "spec: {template: {metadata: {labels: {app: good}}, spec: {containers: [{name: a}]}}}\n",
                "x.yaml",
            )
        ]
    )
    mesh = complete(raws)
    assert [proxy.workload for proxy in mesh.proxies] == ["good"]
    (finding,) = mesh.findings
    assert finding.level is Level.ERROR
    assert finding.origin.source == "x.yaml"
    assert finding.origin.line == 4


def test_endpoint_slices_of_the_files_are_not_made_again() -> None:
    raws, _ = read_objects(
        [
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
                "spec: {selector: {app: a}, ports: [{name: http, port: 80}]}\n---\n"
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
                "metadata: {name: own, labels: {kubernetes.io/service-name: a}}\n"
                "endpoints: [{addresses: [10.0.0.9]}]\nports: [{name: http, port: 80}]\n---\n"
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: a}}\n"
                "spec: {containers: [{name: a}]}\n",
                "x.yaml",
            )
        ]
    )
    mesh = complete(raws)
    assert [key.name for key in mesh.natives if key.kind == "EndpointSlice"] == ["own"]


def test_injection_follows_namespaces_and_pods() -> None:
    text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: quiet, labels: {istio-injection: disabled}}\n"
    for space, name, label in (
        ("quiet", "a", ""),
        ("quiet", "b", 'sidecar.istio.io/inject: "true"'),
        ("loud", "c", ""),
        ("loud", "d", 'sidecar.istio.io/inject: "false"'),
    ):
        text += (
            f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {space}, labels: {{{label}}}}}\n"
            "spec: {containers: [{name: x}]}\n"
        )
    mesh = complete(read_objects([(text, "x.yaml")])[0])
    assert {p.name: p.injected for p in mesh.proxies} == {
        "a": False,
        "b": True,
        "c": True,
        "d": False,
    }
    assert Key("Namespace", "", "quiet") in mesh.natives
