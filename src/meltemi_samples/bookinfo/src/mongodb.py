"""mongodb: MongoDB of this machine, with the ratings in it, as the image of that name has them.

``python -m meltemi_samples.bookinfo.src.mongodb [server options]``. The data is in /data/db where that can be written (a
volume), else in a folder that goes with the container.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import pymongo
import pymongo.errors

DATA = "/data/db"
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PORT = 27017
START_LIMIT_MS = 60_000


def fill(url: str) -> None:
    """Put the ratings into a database that has none. Waits for the server."""
    with pymongo.MongoClient(url, serverSelectionTimeoutMS=START_LIMIT_MS) as client:
        ratings = client["test"]["ratings"]
        if ratings.find_one() is None:
            ratings.insert_many([{"rating": 5}, {"rating": 4}])


def main() -> None:
    """Become the server; a child fills it once it listens."""
    if sys.argv[1:] == ["fill"]:
        fill(f"mongodb://127.0.0.1:{PORT}/")
        return
    server = shutil.which("mongod", path=SYSTEM)
    if server is None:
        raise SystemExit(
            "MongoDB is not installed: see www.mongodb.com for packages that have mongod"
        )
    data = DATA if os.access(DATA, os.W_OK) else tempfile.mkdtemp(prefix="mongodb-")
    subprocess.Popen([sys.executable, "-m", "meltemi_samples.bookinfo.src.mongodb", "fill"])
    os.execv(
        server, [server, "--dbpath", data, "--bind_ip_all", "--port", str(PORT), *sys.argv[1:]]
    )


if __name__ == "__main__":
    main()
