"""Pods: start, environment, files, restarts, deletion. Each test is a scenario on a real node."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from localkube.client.resources import PODS
from localkube_node import isolated
from localkube_node.world import (
    container_status,
    http_server,
    is_ready,
    log_text,
    node,
    phase,
    pod,
    run_to_end,
    shell,
)


def here(name: str, directory: Path) -> None:
    isolated.run(f"localkube_node.test_pods:{name}", directory)


async def scenario_lifecycle(directory: Path) -> None:
    async with node(directory) as (api, agent):
        api.put(PODS, pod("web", http_server()))
        await api.until(lambda: is_ready(api, "web"))
        status = api.find(PODS, "web")["status"]
        assert status["phase"] == "Running"
        assert status["podIP"].startswith("10.244.0.")
        assert status["hostIP"] == "172.30.0.1"
        assert status["containerStatuses"][0]["state"]["running"]["startedAt"]
        reasons = [reason for reason, _ in api.events("web")]
        assert {"Pulled", "Created", "Started"} <= set(reasons)
        worker = agent.find("default", "web")
        assert worker is not None and worker.sandbox is not None
        sandbox = worker.sandbox.pid
        await api.delete(PODS, "web", "default")
        await api.until(lambda: api.find(PODS, "web") is None)
        await api.until(lambda: not agent.workers)
        await api.until(lambda: not Path(f"/proc/{sandbox}/ns/net").exists())
        await api.until(lambda: not [n for _, n in socket.if_nameindex() if n.startswith("pod")])


def test_a_pod_becomes_ready_and_is_deleted_without_a_trace(tmp_path: Path) -> None:
    here("scenario_lifecycle", tmp_path)


async def scenario_inside(directory: Path) -> None:
    async with node(directory) as (api, agent):
        text = await run_to_end(
            api,
            agent,
            "look",
            "hostname; cat /etc/hosts /etc/resolv.conf; echo $HOSTNAME $NODE $IP $TWICE;"
            "touch /usr/x 2>&1; touch /tmp/ok && echo writable; ls /proc | grep -c '^1$';"
            "grep CapEff /proc/self/status; id -u",
            env=[
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "TWICE", "value": "$(NODE)-$(NODE)-$(NONE)"},
            ],
        )
        address = api.find(PODS, "look")["status"]["podIP"]
        assert f"{address}\tlook" in text
        assert "nameserver 10.96.0.10" in text
        assert "search default.svc.cluster.local svc.cluster.local cluster.local" in text
        assert f"look node0 {address} node0-node0-$(NONE)" in text
        assert "Read-only file system" in text
        assert "writable" in text
        # CHOWN..AUDIT_WRITE of the usual default set, without NET_ADMIN and SYS_ADMIN.
        assert "CapEff:\t00000000a80425fb" in text
        assert text.rstrip().endswith("0")
        assert phase(api, "look") == "Succeeded"


def test_a_container_sees_its_own_host_name_files_and_rights(tmp_path: Path) -> None:
    here("scenario_inside", tmp_path)


async def scenario_restart(directory: Path) -> None:
    async with node(directory) as (api, _):
        api.put(PODS, pod("crash", shell("echo run; echo why > /dev/termination-log; exit 3")))
        status = await api.until(
            lambda: (s := container_status(api, "crash")).get("restartCount", 0) >= 2 and s
        )
        assert status["lastState"]["terminated"]["exitCode"] == 3
        assert status["lastState"]["terminated"]["message"].strip() == "why"
        await api.until(
            lambda: (
                container_status(api, "crash").get("state", {}).get("waiting", {}).get("reason")
                == "CrashLoopBackOff"
            )
        )
        assert any(reason == "BackOff" for reason, _ in api.events("crash"))
        assert not is_ready(api, "crash")


def test_a_crashing_container_is_restarted_with_back_off(tmp_path: Path) -> None:
    here("scenario_restart", tmp_path)


async def scenario_init(directory: Path) -> None:
    async with node(directory) as (api, agent):
        shared = {"name": "shared", "mountPath": "/shared"}
        api.put(
            PODS,
            pod(
                "ordered",
                shell(
                    "cat /shared/log; echo main >> /shared/log; sleep 1000", volumeMounts=[shared]
                ),
                initContainers=[
                    shell("echo one >> /shared/log", "one", volumeMounts=[shared]),
                    shell(
                        "echo side >> /shared/log; trap 'cat /shared/log; exit 0' TERM; "
                        "while true; do sleep 0.05; done",
                        "side",
                        restartPolicy="Always",
                        startupProbe={"exec": {"command": ["grep", "side", "/shared/log"]}},
                        volumeMounts=[shared],
                    ),
                    shell("echo two >> /shared/log", "two", volumeMounts=[shared]),
                ],
                volumes=[{"name": "shared", "emptyDir": {}}],
            ),
        )
        await api.until(lambda: is_ready(api, "ordered"))
        await api.until(lambda: "two" in log_text(agent, "ordered"))
        assert log_text(agent, "ordered").split() == ["one", "side", "two"]
        assert (
            container_status(api, "ordered", "one")["state"]["terminated"]["reason"] == "Completed"
        )
        assert container_status(api, "ordered", "side")["state"]["running"]
        worker = agent.find("default", "ordered")
        assert worker is not None
        side = worker.runners["side"]
        main = worker.runners["main"]
        await api.delete(PODS, "ordered", "default")
        await side.done.wait()
        assert main.done.is_set(), "the sidecar must outlive the main container"
        await api.until(lambda: api.find(PODS, "ordered") is None)


def test_init_containers_run_in_order_and_sidecars_end_last(tmp_path: Path) -> None:
    here("scenario_init", tmp_path)


async def scenario_unknown_image(directory: Path) -> None:
    own = directory / "home" / ".config" / "localkube" / "images.yaml"
    async with node(directory) as (api, _):
        container = {"name": "main", "image": "example.com/shop/cart:1.2"}
        api.put(PODS, pod("cart", container))
        waiting = await api.until(
            lambda: (
                container_status(api, "cart").get("state", {}).get("waiting")
                if container_status(api, "cart").get("state", {}).get("waiting", {}).get("reason")
                in ("ErrImagePull", "ImagePullBackOff")
                else None
            )
        )
        assert str(own) in waiting["message"]
        assert 'image: "example.com/shop/cart:*"' in waiting["message"]
        await api.until(lambda: any(reason == "Failed" for reason, _ in api.events("cart")))
        own.parent.mkdir(parents=True)
        own.write_text('images: [{image: "example.com/shop/cart:*", command: ["sleep", "100"]}]\n')
        await api.until(lambda: is_ready(api, "cart"))


def test_an_unknown_image_says_how_to_add_it_and_then_works(tmp_path: Path) -> None:
    here("scenario_unknown_image", tmp_path)


async def scenario_probes(directory: Path) -> None:
    async with node(directory) as (api, agent):
        probe = {
            "httpGet": {"port": 80, "path": "/ready"},
            "periodSeconds": 1,
            "failureThreshold": 1,
        }
        live = {"exec": {"command": ["test", "!", "-e", "/tmp/dead"]}, "periodSeconds": 1}
        api.put(
            PODS,
            pod(
                "web",
                http_server(readinessProbe=probe, livenessProbe={**live, "failureThreshold": 1}),
            ),
        )
        await api.until(lambda: is_ready(api, "web"))
        worker = agent.find("default", "web")
        assert worker is not None
        runner = worker.runners["main"]
        code, _ = await runner.execute(["touch", "/tmp/unready"], 5)
        assert code == 0
        await api.until(lambda: not is_ready(api, "web"))
        await runner.execute(["rm", "/tmp/unready"], 5)
        await api.until(lambda: is_ready(api, "web"))
        await runner.execute(["touch", "/tmp/dead"], 5)
        await api.until(lambda: container_status(api, "web")["restartCount"] == 1)
        await api.until(lambda: is_ready(api, "web"))
        reasons = {reason for reason, _ in api.events("web")}
        assert {"Unhealthy", "Killing"} <= reasons


def test_probes_unready_and_restart_a_container(tmp_path: Path) -> None:
    here("scenario_probes", tmp_path)


async def scenario_leftovers(directory: Path) -> None:
    async with node(directory) as (api, agent):
        script = "setsid sleep 4242 & sleep 0.2; exit 0"
        await run_to_end(api, agent, "fork", script)

        def strays() -> list[str]:
            found = []
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        found.append((entry / "cmdline").read_bytes().decode())
                    except OSError:
                        continue
            return [line for line in found if "4242" in line and "setsid" not in line]

        await api.until(lambda: not strays())


def test_a_container_that_ends_takes_its_daemons_with_it(tmp_path: Path) -> None:
    here("scenario_leftovers", tmp_path)


async def scenario_grace(directory: Path) -> None:
    async with node(directory) as (api, agent):
        stubborn = shell(
            "trap '' TERM; echo up; while true; do sleep 0.05; done",
            lifecycle={
                "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /proc/1/fd/1; true"]}}
            },
        )
        api.put(PODS, pod("stubborn", stubborn))
        await api.until(lambda: "up" in log_text(agent, "stubborn"))
        worker = agent.find("default", "stubborn")
        assert worker is not None
        runner = worker.runners["main"]
        await api.delete(PODS, "stubborn", "default", grace_period_seconds=1)
        await api.until(lambda: api.find(PODS, "stubborn") is None)
        assert runner.process is not None
        assert runner.process.exited.result() == 128 + 9


def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    here("scenario_grace", tmp_path)


async def scenario_child(directory: Path) -> None:
    async with node(directory) as (api, agent):
        # The first process stops its child by itself, and tells how the child ended.
        parent = shell(
            "sh -c 'trap \"echo child got TERM; exit 3\" TERM; while :; do sleep 0.05; done' & child=$!;"
            "trap 'sleep 0.3; kill -USR1 $child; wait $child; echo child ended with $?; exit 0' TERM;"
            "echo up; while :; do sleep 0.05; done"
        )
        api.put(PODS, pod("parent", parent))
        await api.until(lambda: "up" in log_text(agent, "parent"))
        worker = agent.find("default", "parent")
        assert worker is not None
        runner = worker.runners["main"]
        assert runner.log is not None
        printed: list[bytes] = []  # the log file goes with the pod
        runner.log.listen(lambda _stream, data: printed.append(data))
        await api.delete(PODS, "parent", "default", grace_period_seconds=10)
        await api.until(lambda: api.find(PODS, "parent") is None)
        told = b"".join(printed).decode().splitlines()  # a shell may also name the signal
        assert f"child ended with {128 + signal.SIGUSR1}" in told
        assert "child got TERM" not in told
        assert runner.process is not None
        assert runner.process.exited.result() == 0


def test_the_request_to_stop_goes_to_the_first_process_alone(tmp_path: Path) -> None:
    here("scenario_child", tmp_path)


async def scenario_forced(directory: Path) -> None:
    async with node(directory) as (api, agent):
        api.put(PODS, pod("gone", shell("trap '' TERM; while true; do sleep 0.05; done")))
        await api.until(lambda: is_ready(api, "gone"))
        api.remove(PODS, "gone", "default")
        await api.until(lambda: not agent.workers, limit_s=4)


def test_a_pod_whose_object_vanished_ends_at_once(tmp_path: Path) -> None:
    here("scenario_forced", tmp_path)


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_pod_that_fails_or_retries(tmp_path: Path, policy: str) -> None:
    here(f"scenario_policy_{policy.lower()}", tmp_path)


async def scenario_policy_never(directory: Path) -> None:
    async with node(directory) as (api, agent):
        await run_to_end(api, agent, "fails", "exit 7")
        assert phase(api, "fails") == "Failed"
        assert container_status(api, "fails")["state"]["terminated"]["exitCode"] == 7


async def scenario_policy_onfailure(directory: Path) -> None:
    async with node(directory) as (api, _):
        script = "test -e /data/second && exit 0; touch /data/second; exit 1"
        mount = {"name": "data", "mountPath": "/data"}
        volumes = [{"name": "data", "emptyDir": {}}]
        container = shell(script, volumeMounts=[mount])
        api.put(PODS, pod("retry", container, restartPolicy="OnFailure", volumes=volumes))
        await api.until(lambda: phase(api, "retry") == "Succeeded")
        assert container_status(api, "retry")["restartCount"] == 1
