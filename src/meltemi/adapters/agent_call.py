"""One call to istiod in a process of its own, which ends with the answer.

gRPC, cryptography and Envoy's message types stay out of the agent that way, which lives as long as its pod and must stay small.
In: a question on the child's stdin, JSON. Out: its answer on stdout, JSON, or the reason why there is none.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.agent.secrets import SecretText

NO_KEY = SecretText("")


@dataclass(frozen=True, slots=True, kw_only=True)
class IstiodCall:
    """Whom to ask and how to verify it. ``mark`` is a socket mark or 0; times are seconds.

    ``certificate`` and ``key`` prove who asks, in the place of a token; istiod is then verified by ``trusted``, the roots that Envoy
    was given. All PEM.
    """

    address: str
    server_name: str
    plaintext: bool
    root_file: str
    token_file: str
    mark: int = 0
    deadline_s: float = 10.0
    trusted: str = ""
    certificate: str = ""
    key: SecretText = NO_KEY


class NoAnswerError(Exception):
    """The child gave none; the text says why."""


async def ask_in_child(module: str, question: Mapping[str, Any], deadline_s: float) -> Any:
    """Run ``python -m module``. Raises NoAnswerError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        # The child has its own deadline; this one is for a child that hangs.
        async with asyncio.timeout(deadline_s + 10.0):
            out, err = await process.communicate(json.dumps(question).encode())
    except TimeoutError:
        raise NoAnswerError("it hung and was ended") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return json.loads(out)
    except ValueError:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise NoAnswerError(last or "no answer") from None
