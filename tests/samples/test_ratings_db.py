"""ratings v2 with a real MariaDB or MySQL, and with a real MongoDB, where this machine has them; and without."""

from __future__ import annotations

import shutil
import time

import pytest

from meltemi_samples.bookinfo.src import mysqldb
from samples.programs import free_port, run_curl, running

# Clients that `make setup` installs; an environment from before them is told apart from a failure.
pytest.importorskip("pymysql")
pytest.importorskip("pymongo")


def get(port: int) -> tuple[int, str]:
    done = run_curl("-s", "-w", " %{http_code}", f"http://127.0.0.1:{port}/ratings/0")
    body, _, code = done.stdout.rpartition(" ")
    return int(code), body


def until_answered(port: int, limit_s: float = 60) -> tuple[int, str]:
    """The first answer that is not about a database that is not there yet."""
    deadline = time.monotonic() + limit_s
    while (found := get(port))[0] == 500 and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def has(*programs: str) -> bool:
    return any(shutil.which(program, path=mysqldb.SYSTEM) for program in programs)


@pytest.mark.skipif(not has(*mysqldb.SERVERS), reason="neither MariaDB nor MySQL is installed")
def test_ratings_from_mysql() -> None:
    database, port = free_port(), free_port()
    where = {
        "DB_TYPE": "mysql",
        "MYSQL_DB_HOST": "127.0.0.1",
        "MYSQL_DB_PORT": str(database),
        "MYSQL_DB_USER": "root",
        "MYSQL_DB_PASSWORD": "it's \\ secret",
    }
    options = [f"--port={database}", "--default-authentication-plugin", "mysql_native_password"]
    with (
        running(
            "bookinfo.src.mysqldb",
            *options,
            port=database,
            MYSQL_ROOT_PASSWORD=where["MYSQL_DB_PASSWORD"],
        ),
        running("bookinfo.src.ratings", str(port), port=port, SERVICE_VERSION="v2", **where),
    ):
        status, body = until_answered(port)
        assert (status, body) == (200, '{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}')
        url = f"http://127.0.0.1:{port}/ratings/0"
        posted = run_curl("-s", "-w", "%{http_code}", "-d", '{"Reviewer1":1}', url)
        assert posted.stdout.endswith("501")


@pytest.mark.skipif(not has("mongod"), reason="MongoDB is not installed")
def test_ratings_from_mongodb() -> None:
    port = free_port()
    with (
        running("bookinfo.src.mongodb", port=27017),
        running("bookinfo.src.ratings", str(port), port=port, SERVICE_VERSION="v2",
                MONGO_DB_URL="mongodb://127.0.0.1:27017/test"),
    ):  # fmt: skip
        deadline = time.monotonic() + 60
        while (found := until_answered(port))[0] == 404 and time.monotonic() < deadline:
            time.sleep(0.1)  # the server answers before it is filled
        assert found == (200, '{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}')


@pytest.mark.parametrize("kind", ["mysql", "mongodb"])
def test_without_a_database_ratings_says_so(kind: str) -> None:
    port, nobody = free_port(), free_port()
    where = {"DB_TYPE": kind, "MYSQL_DB_HOST": "127.0.0.1", "MYSQL_DB_PORT": str(nobody)}
    url = f"mongodb://127.0.0.1:{nobody}/test?serverSelectionTimeoutMS=100"
    with running(
        "bookinfo.src.ratings",
        str(port),
        port=port,
        SERVICE_VERSION="v2",
        MONGO_DB_URL=url,
        **where,
    ):
        assert get(port) == (500, '{"error":"could not connect to ratings database"}')


def test_options_of_mysql_alone_are_left_out_for_mariadb() -> None:
    words = ["--default-authentication-plugin", "mysql_native_password", "--port", "3307", "--x=1"]
    assert mysqldb.split_options(words, mariadb=True) == ["--port=3307", "--x=1"]
    assert mysqldb.split_options(words, mariadb=False) == [
        "--default-authentication-plugin=mysql_native_password",
        "--port=3307",
        "--x=1",
    ]
