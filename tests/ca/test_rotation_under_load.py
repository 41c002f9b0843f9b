"""The root of a whole mesh is exchanged while visitors come: none of them notices.

A cluster of its own: the exchange concerns every pod of it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.conftest import Ingress, Shell, ingress, mesh, shell

__all__ = ["ingress", "mesh", "shell"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]


@contextmanager
def visitors(site: Ingress, count: int = 3) -> Iterator[Counter[str]]:
    """Steady requests for the whole page until the block ends; what they met, counted."""
    met: Counter[str] = Counter()
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.02):
            try:
                met["whole" if site.whole() else "broken"] += 1
            except OSError as error:
                met[repr(error)] += 1

    threads = [threading.Thread(target=visit) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield met
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_root_rotation_loses_no_request(mesh: Shell, ingress: Ingress) -> None:
    """Every proxy renews three times, under another root; all pages come whole, and the proof is complete."""
    before = mesh.json("meltemi ca status -o json")
    with visitors(ingress) as met:
        mesh("meltemi ca rotate --watch", timeout=300)
    after = mesh.json("meltemi ca status -o json")
    assert set(met) == {"whole"}
    assert after["rotation"] is None
    assert after["signs"] != before["signs"]
    assert after["trusted"] == [after["signs"]]
    assert after["proxies"] >= 8
    assert after["issuedBy"] == after["trustedBy"] == {after["signs"]: after["proxies"]}
