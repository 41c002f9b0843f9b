"""Container logs: format, partial lines, rotation, selection, following."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path

from localkube.kit import clock
from localkube.node.logs import LogFile, LogOptions


async def text(log: LogFile, **options: object) -> str:
    chosen = LogOptions(**options)  # type: ignore[arg-type]
    return b"".join([chunk async for chunk in log.read(chosen)]).decode()


async def test_lines_have_the_cri_format(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "c" / "0.log")
    log.write("stdout", b"one\ntw")
    log.write("stderr", b"oops\n")
    log.write("stdout", b"o\nrest")
    log.close()
    lines = log.path.read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
    for line, end in zip(
        lines, ["stdout F one", "stderr F oops", "stdout F two", "stdout P rest"], strict=True
    ):
        assert re.fullmatch(f"{stamp} {end}", line)
    assert await text(log) == "one\noops\ntwo\nrest"


async def test_long_lines_are_cut_and_joined_again(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "0.log")
    line = "x" * 100_000
    for start in range(0, len(line), 7000):
        log.write("stdout", line[start : start + 7000].encode())
    log.write("stdout", b"\n")
    assert max(map(len, log.path.read_text().splitlines())) < 17_000
    assert await text(log) == line + "\n"


async def test_rotation_keeps_the_newest_and_a_follower_misses_nothing(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "0.log", max_bytes=2000)
    seen: list[bytes] = []

    async def follow() -> None:
        async for chunk in log.read(LogOptions(follow=True)):
            seen.append(chunk)

    task = asyncio.ensure_future(follow())
    for number in range(200):
        log.write("stdout", f"line {number}\n".encode())
        await asyncio.sleep(0)
    log.close()
    await task
    assert b"".join(seen).decode().split() == " ".join(f"line {n}" for n in range(200)).split()
    assert log.path.stat().st_size <= 2000
    assert (await text(log)).endswith("line 199\n")
    assert await text(log, tail_lines=2) == "line 198\nline 199\n"


async def test_selection(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "0.log")
    log.write("stdout", b"".join(b"%d\n" % n for n in range(10)))
    assert await text(log, tail_lines=3) == "7\n8\n9\n"
    assert await text(log, tail_lines=0) == ""
    assert await text(log, tail_lines=99) == "".join(f"{n}\n" for n in range(10))
    assert await text(log, limit_bytes=5) == "0\n1\n2"
    later = clock.now() + timedelta(minutes=1)
    assert await text(log, since=later) == ""
    assert await text(log, since=later - timedelta(minutes=2), tail_lines=1) == "9\n"
    stamped = await text(log, tail_lines=1, timestamps=True)
    assert re.fullmatch(r"\S+Z 9\n", stamped)
