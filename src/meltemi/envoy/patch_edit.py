"""Applying one EnvoyFilter patch to messages, and the record of what came of each.

In: a patch and the messages of one kind. Out: changed messages. A patch whose value is no legal configuration is left
out, the others are applied, and the record says so: one bad patch must not stop a proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meltemi.envoy.patch_merge import merge
from meltemi.ir.patch import Patch
from meltemi.kit.messages import parse
from meltemi.model.origin import Finding, Level, Origin

MERGES = ("MERGE", "MERGE_AND_REPLACE_LIST")
_INSERTS = ("ADD", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST")
Holds = Callable[[Any], bool]


class PatchRecord:
    """What came of the patches of one class: those that changed something, and findings about those that could not."""

    def __init__(self) -> None:
        self.applied: set[Patch] = set()
        self.failed: set[Patch] = set()
        self._findings: dict[Finding, None] = {}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Each problem once."""
        return tuple(self._findings)

    def problem(self, patch: Patch, text: str, remedy: str = "") -> None:
        """A patch cannot be applied."""
        self.failed.add(patch)
        self.remark(patch, f"the patch is left out: {text}", remedy)

    def remark(self, patch: Patch, text: str, remedy: str = "") -> None:
        """Something about a patch that its author should know."""
        origin = patch.origins[0] if patch.origins else Origin()
        self._findings[Finding("MLT0110", Level.WARNING, text, origin, remedy)] = None


class Editor:
    """Applies patches to repeated fields (or lists) of messages."""

    def __init__(self, record: PatchRecord) -> None:
        self.record = record

    def value(self, patch: Patch, target: Any) -> Any:
        """The patch's value as a message like ``target``, or None (and a finding) when it is not one."""
        try:
            made, ignored = parse(patch.body, target)
        except ValueError as error:
            text = f"its value is no {target.DESCRIPTOR.full_name}: {error}"
            self.record.problem(patch, text, "write it as Envoy's reference describes that type")
            return None
        if ignored:
            self.record.remark(patch, f"a part of its value is ignored: {ignored}")
        return made

    def merge(self, patch: Patch, message: Any) -> None:
        """Merge the patch's value into a message."""
        value = self.value(patch, message)
        if value is not None:
            merge(message, value, replace_lists=patch.operation == "MERGE_AND_REPLACE_LIST")
            self.record.applied.add(patch)

    def add_named(self, entries: list[Any], patch: Patch, empty: Any) -> None:
        """Add a whole resource, whose name must be its own."""
        made = self.value(patch, empty)
        if made is None:
            return
        if not made.name or any(made.name == entry.name for entry in entries):
            text = f"there is a {made.name!r} already" if made.name else "its value has no name"
            self.record.problem(patch, text, "give the value a name of its own")
            return
        entries.append(made)
        self.record.applied.add(patch)

    def edit(self, entries: Any, patch: Patch, holds: Holds, *, anchored: bool, empty: Any) -> None:
        """Apply a patch to the entries of a repeated field: remove, merge, replace or insert."""
        if patch.operation == "REMOVE":
            kept = [entry for entry in entries if not holds(entry)]
            if len(kept) < len(entries):
                self.record.applied.add(patch)
                replace_entries(entries, kept)
        elif patch.operation in MERGES:
            for entry in entries:
                if holds(entry):
                    self.merge(patch, entry)
        elif patch.operation == "REPLACE":
            chosen = [entry for entry in entries if holds(entry)]
            made = self.value(patch, empty) if chosen else None
            for entry in chosen if made is not None else ():
                entry.CopyFrom(made)
                self.record.applied.add(patch)
        elif patch.operation in _INSERTS:
            self.insert(entries, patch, holds, anchored=anchored, empty=empty)

    def insert(
        self, entries: Any, patch: Patch, holds: Holds, *, anchored: bool, empty: Any
    ) -> None:
        """Insert the value where the patch says.

        ``holds`` tells whether an entry is the anchor; without one (``anchored`` False) ADD and INSERT_AFTER append, and the
        others go first.
        """
        if patch.operation == "ADD" or (patch.operation == "INSERT_AFTER" and not anchored):
            position: int | None = len(entries)
        elif patch.operation == "INSERT_FIRST" or not anchored:
            position = 0
        else:
            after = patch.operation == "INSERT_AFTER"
            found = (index for index, entry in enumerate(entries) if holds(entry))
            position = next((index + after for index in found), None)
        made = self.value(patch, empty) if position is not None else None
        if made is None or position is None:
            return
        kept = list(entries)
        kept.insert(position, made)
        replace_entries(entries, kept)
        self.record.applied.add(patch)


def replace_entries(entries: Any, kept: list[Any]) -> None:
    """Set the content of a repeated message field."""
    copies = []
    for entry in kept:
        copy = type(entry)()
        copy.CopyFrom(entry)
        copies.append(copy)
    del entries[:]
    entries.extend(copies)
