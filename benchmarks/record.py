"""What the benchmarks share: a table for people, and a line in a file that is committed."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def conclude(
    file: Path, record: Mapping[str, Any], aims: Mapping[str, float] | None = None
) -> None:
    """Print a record, with its aims (upper bounds) where there are some, and append it to ``file`` with date and machine."""
    whole = {
        **record,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),  # noqa: TID251 - a rim of its own
        "machine": f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}",
        "user": "root" if os.geteuid() == 0 else "ordinary",
    }
    table = Table("What", "Found", *(["Aim"] if aims else []))
    for key, value in whole.items():
        aim = (aims or {}).get(key)
        cells = [f"under {aim:g}" if aim else ""] if aims else []
        table.add_row(key, str(value), *cells)
    Console().print(table)
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(whole) + "\n")
