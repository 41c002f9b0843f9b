"""What the system refused, in the words that users of Kubernetes know.

In: an OSError. Out: "connection refused", without Python's error number and quoting.
"""

from __future__ import annotations

import os


def reason(error: OSError) -> str:
    """Return why a system call failed; an error without a number explains itself."""
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    return os.strerror(error.errno).lower() if error.errno else str(error)
