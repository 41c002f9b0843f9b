"""All of Istio's semantics: a snapshot and a proxy class in, the IR of that class out.

Pure and total: wrong configuration yields findings and leaves the rest in place.
"""

from __future__ import annotations

from meltemi.translate.facade import overlay_for, translate

__all__ = ["overlay_for", "translate"]
