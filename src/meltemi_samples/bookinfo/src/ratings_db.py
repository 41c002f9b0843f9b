"""The databases of ratings v2: stars from MongoDB or MySQL, in the order of the reviewers.

Environment: DB_TYPE (``mysql``, else MongoDB); MONGO_DB_URL (as in ``mongodb://mongodb:27017/test``; collection
``ratings`` of documents with a ``rating``); MYSQL_DB_HOST, _PORT, _USER, _PASSWORD (database ``test``, table
``ratings(ReviewID, Rating)``). Every call opens a connection of its own, so that a change of the mesh's rules shows in the
next answer.
"""

from __future__ import annotations

from collections.abc import Mapping

TIMEOUT_S = 5
MONGO_URL = "mongodb://mongodb:27017/test"
DATABASE = "test"


class NoDatabase(Exception):
    """The database could not be asked; the text is for the caller."""


def fetch(environment: Mapping[str, str]) -> list[int]:
    """All stars that there are. Raises NoDatabase."""
    if environment.get("DB_TYPE") == "mysql":
        return _from_mysql(environment)
    return _from_mongodb(environment.get("MONGO_DB_URL") or MONGO_URL)


def _from_mysql(environment: Mapping[str, str]) -> list[int]:
    # Only this version of ratings needs the client, and a program that starts quickly is worth more.
    import pymysql

    try:
        connection = pymysql.connect(
            host=environment.get("MYSQL_DB_HOST", "mysqldb"),
            port=int(environment.get("MYSQL_DB_PORT", "3306")),
            user=environment.get("MYSQL_DB_USER", "root"),
            password=environment.get("MYSQL_DB_PASSWORD", ""),
            database=DATABASE,
            connect_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
        )
    except (pymysql.Error, OSError, ValueError) as error:
        raise NoDatabase("could not connect to ratings database") from error
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT Rating FROM ratings ORDER BY ReviewID")
            return [int(row[0]) for row in cursor.fetchall()]
    except pymysql.Error as error:
        raise NoDatabase("could not perform select") from error


def _from_mongodb(url: str) -> list[int]:
    import pymongo
    import pymongo.errors

    limit_ms = TIMEOUT_S * 1000
    try:
        with pymongo.MongoClient(
            url, serverSelectionTimeoutMS=limit_ms, socketTimeoutMS=limit_ms
        ) as client:
            collection = client.get_default_database(DATABASE)["ratings"]
            return [int(document["rating"]) for document in collection.find()]
    except (pymongo.errors.PyMongoError, KeyError, ValueError) as error:
        raise NoDatabase("could not connect to ratings database") from error
