"""Service addresses, DNS and load balancers on a real node."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from localkube.client.resources import ENDPOINT_SLICES, PODS, SERVICES
from localkube.node.network import dns_zone
from localkube_node import isolated
from localkube_node.world import http_server, is_ready, log_text, node, pod, shell


def here(name: str, directory: Path) -> None:
    isolated.run(f"localkube_node.test_network_scenarios:{name}", directory)


def service(name: str, cluster_ip: str, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}]
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": cluster_ip, "type": "ClusterIP", "ports": ports, **spec},
    }


def endpoints(api: Any, name: str, *pods: str) -> dict[str, Any]:
    addresses = [api.find(PODS, p)["status"]["podIP"] for p in pods]
    return {
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [a], "conditions": {"ready": True}, "hostname": p}
            for a, p in zip(addresses, pods, strict=True)
        ],
    }


async def http_get(address: str, port: int = 80) -> str:
    """Return the body of one answer on a connection of its own."""
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(b"GET / HTTP/1.0\r\nhost: x\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return text.partition("\r\n\r\n")[2]


async def refused(address: str) -> bool:
    try:
        await http_get(address)
    except ConnectionRefusedError:
        return True
    return False


async def eventually(check: Any) -> None:
    async with asyncio.timeout(10):
        while not await check():
            await asyncio.sleep(0.02)


async def two_servers(api: Any) -> None:
    for name in ("a", "b"):
        api.put(PODS, pod(name, http_server()))
    await api.until(lambda: is_ready(api, "a") and is_ready(api, "b"))


async def scenario_vip(directory: Path) -> None:
    async with node(directory) as (api, agent):
        await two_servers(api)
        api.put(SERVICES, service("web", "10.96.1.1"))
        api.put(SERVICES, service("self", "10.96.1.2"))
        api.put(ENDPOINT_SLICES, endpoints(api, "web", "a", "b"))
        api.put(ENDPOINT_SLICES, endpoints(api, "self", "a"))

        async def both() -> bool:
            if await refused("10.96.1.1"):
                return False
            seen = {(await http_get("10.96.1.1")).split()[0] for _ in range(40)}
            return seen == {"a", "b"}

        await eventually(both)
        # A pod through another Service, and itself through its own (hairpin).
        fetch = (
            "import urllib.request as r; get = lambda u: r.urlopen(u, timeout=5).read().decode();"
            "print(get('http://10.96.1.1/').split()[0] in 'ab', get('http://self.default'))"
        )
        worker = agent.find("default", "a")
        assert worker is not None
        code, output = await worker.runners["main"].execute(["python", "-c", fetch], 20)
        assert code == 0, output
        assert output.startswith("True a 172.30.0.1"), output
        api.put(ENDPOINT_SLICES, endpoints(api, "web", "b"))

        async def only_b() -> bool:
            return {(await http_get("10.96.1.1")).split()[0] for _ in range(20)} == {"b"}

        await eventually(only_b)
        api.put(ENDPOINT_SLICES, endpoints(api, "web"))
        await eventually(lambda: refused("10.96.1.1"))
        api.remove(SERVICES, "self", "default")
        await eventually(lambda: refused("10.96.1.2"))


def test_service_addresses_follow_the_endpoints(tmp_path: Path) -> None:
    here("scenario_vip", tmp_path)


async def scenario_node_port(directory: Path) -> None:
    async with node(directory) as (api, _):
        await two_servers(api)
        ports = [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]
        api.put(
            SERVICES,
            service("web", "10.96.1.1", type="NodePort", ports=ports, sessionAffinity="ClientIP"),
        )
        api.put(ENDPOINT_SLICES, endpoints(api, "web", "a", "b"))

        async def open_now() -> bool:
            try:
                await http_get("172.30.0.1", 30080)
            except OSError:
                return False
            return True

        await eventually(open_now)
        seen = {(await http_get("172.30.0.1", 30080)).split()[0] for _ in range(20)}
        assert len(seen) == 1, "one client stays with one pod"


def test_node_ports_and_client_affinity(tmp_path: Path) -> None:
    here("scenario_node_port", tmp_path)


async def scenario_dns(directory: Path) -> None:
    async with node(directory) as (api, agent):
        await two_servers(api)
        api.put(SERVICES, service("web", "10.96.1.1"))
        api.put(SERVICES, service("heads", "None"))
        api.put(
            SERVICES,
            service("far", "", type="ExternalName", externalName="web.default.svc.cluster.local"),
        )
        api.put(ENDPOINT_SLICES, endpoints(api, "heads", "a", "b"))
        first = api.find(PODS, "a")["status"]["podIP"]
        names = [
            "web",
            "web.default",
            "web.default.svc.cluster.local",
            "a.heads",
            "far",
            f"{first.replace('.', '-')}.default.pod",
        ]
        script = f"import socket\nfor n in {names!r}: print(n, socket.gethostbyname(n))\n" + (
            "print(sorted({a[4][0] for a in socket.getaddrinfo('heads', 80)}))\n"
            "try: socket.gethostbyname('nothing.here.svc.cluster.local.')\n"
            "except OSError as e: print('none', e.errno)"
        )
        worker = agent.find("default", "b")
        assert worker is not None
        code, output = await worker.runners["main"].execute(["python", "-c", script], 30)
        assert code == 0, output
        second = api.find(PODS, "b")["status"]["podIP"]
        assert output.splitlines() == [
            "web 10.96.1.1",
            "web.default 10.96.1.1",
            "web.default.svc.cluster.local 10.96.1.1",
            f"a.heads {first}",
            "far 10.96.1.1",
            f"{names[-1]} {first}",
            str(sorted([first, second])),
            f"none {socket.EAI_NONAME}",
        ]
        # The same over TCP.
        reader, writer = await asyncio.open_connection("10.96.0.10", 53)
        query = (
            b"\0\x07\x01\0\0\1\0\0\0\0\0\0"
            + dns_zone.encode_name(("_http", "_tcp", "web", "default", "svc", "cluster", "local"))
            + b"\0\x21\0\1"
        )
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = await reader.readexactly(size)
        assert answer[:2] == b"\0\x07" and answer[7] == 2, "one SRV and one A record"
        writer.close()


def test_pods_resolve_services_pods_and_aliases(tmp_path: Path) -> None:
    here("scenario_dns", tmp_path)


async def scenario_load_balancer(directory: Path) -> None:
    async with node(directory) as (api, _):
        await two_servers(api)
        spec: dict[str, Any] = {"type": "LoadBalancer"}
        status = {"loadBalancer": {"ingress": [{"ip": "127.55.0.9"}]}}
        api.put(SERVICES, {**service("edge", "10.96.1.1", **spec), "status": status})
        api.put(ENDPOINT_SLICES, endpoints(api, "edge", "a"))

        async def answers(port: int = 80, want: str = "a") -> bool:
            try:
                return (await http_get("127.55.0.9", port)).startswith(want)
            except OSError:
                return False

        await eventually(answers)
        api.put(ENDPOINT_SLICES, endpoints(api, "edge", "b"))
        await eventually(lambda: answers(want="b"))
        # Half-close: the request side ends first, the answer still comes whole.
        api.remove(SERVICES, "edge", "default")
        await eventually(lambda: refused("127.55.0.9"))


def test_a_load_balancer_address_relays_and_closes(tmp_path: Path) -> None:
    here("scenario_load_balancer", tmp_path)


async def scenario_port_in_use(directory: Path) -> None:
    taken = socket.create_server(("127.55.0.9", 80))
    async with node(directory, port_retry_s=0.05) as (api, _):
        await two_servers(api)
        status = {"loadBalancer": {"ingress": [{"ip": "127.55.0.9"}]}}
        api.put(SERVICES, {**service("edge", "10.96.1.1", type="LoadBalancer"), "status": status})
        api.put(ENDPOINT_SLICES, endpoints(api, "edge", "a"))
        await api.until(
            lambda: (
                api.find(SERVICES, "edge")["metadata"].get("annotations", {})
                == {"localkube/forwarded-ports": "80=8080"}
            )
        )
        ports = await api.until(
            lambda: api.find(SERVICES, "edge")["status"]["loadBalancer"]["ingress"][0].get("ports")
        )
        assert ports == [{"port": 80, "protocol": "TCP", "error": "AddressInUse"}]
        assert (await http_get("127.55.0.9", 8080)).startswith("a")
        await api.until(lambda: any("8080 works instead" in text for _, text in api.events("edge")))
        taken.close()
        await api.until(lambda: not api.find(SERVICES, "edge")["metadata"]["annotations"])
        assert (await http_get("127.55.0.9", 80)).startswith("a")
        # Whoever was told of the other port goes on.
        assert (await http_get("127.55.0.9", 8080)).startswith("a")
        assert "ports" not in api.find(SERVICES, "edge")["status"]["loadBalancer"]["ingress"][0]


def test_a_taken_port_is_told_and_moved_until_it_is_free(tmp_path: Path) -> None:
    here("scenario_port_in_use", tmp_path)


async def scenario_shared_network(directory: Path) -> None:
    async with node(directory) as (api, agent):
        script = "cat /proc/net/fib_trie | grep -c 172.30.0.1; hostname"
        api.put(PODS, pod("host", shell(script), hostNetwork=True, restartPolicy="Never"))
        await api.until(lambda: log_text(agent, "host").strip())
        assert api.find(PODS, "host")["status"]["podIP"] == "172.30.0.1"
        assert not log_text(agent, "host").startswith("0")


def test_a_host_network_pod_has_the_nodes_address(tmp_path: Path) -> None:
    here("scenario_shared_network", tmp_path)
