"""Authentication: API keys, the tenants they belong to, and what they may do.

Setting `TAFDIL_ADMIN_KEY` turns keys on; that key creates the others. Without it every caller is the one local tenant, and
the API answers only this machine (see `api.gate`).
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from jobs.database import Database
from jobs.errors import NotFound, Unauthorized
from jobs.records import KeyRecord
from jobs.repository import keys
from jobs.settings import Settings
from trainer_core.wording import say

DEFAULT_TENANT = "default"
HIGHEST_PRIORITY = 100
_PREFIX = "tafdil_"
# Length of the prefix that identifies a key in lists and finds its row; 208 bits of the key remain secret.
_SHOWN_LETTERS = len(_PREFIX) + 8


class Scope(StrEnum):
    """What a key may do. Scopes do not include each other, except that `write` includes `read`."""

    READ = "read"
    """See the tenant's jobs, datasets and answers."""
    WRITE = "write"
    """Submit, control, upload, compare, delete; and read."""
    METRICS = "metrics"
    """Read `/metrics`, which covers all tenants."""
    ADMIN = "admin"
    """Create, list and revoke keys."""


@dataclass(frozen=True)
class Caller:
    """Who a request comes from."""

    tenant: str
    scopes: frozenset[Scope]
    max_priority: int
    key_id: str
    """`admin` for the key of the environment, `local` while keys are off."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or (scope is Scope.READ and Scope.WRITE in self.scopes)


LOCAL = Caller(DEFAULT_TENANT, frozenset(Scope), HIGHEST_PRIORITY, "local")
_ADMIN = Caller(DEFAULT_TENANT, frozenset(Scope), HIGHEST_PRIORITY, "admin")


class Access:
    """Creates, lists and revokes keys, and identifies their owners. A revoked key fails from the next request."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        admin_key = settings.admin_key.get_secret_value() if settings.admin_key else None
        self._admin_sha256 = _sha256(admin_key) if admin_key else None

    @property
    def is_on(self) -> bool:
        return self._admin_sha256 is not None

    def authenticate(self, key: str) -> Caller:
        """The key's owner. Raises `Unauthorized` if the key is unknown, revoked or expired."""
        if not (key.isascii() and key.isprintable()):
            # Not one of our keys, so there is nothing to look up.
            raise Unauthorized(say("key_invalid"))
        sha256 = _sha256(key)
        if self._admin_sha256 and hmac.compare_digest(sha256, self._admin_sha256):
            return _ADMIN
        with self._database.reading() as session:
            found = keys.valid(session, key[:_SHOWN_LETTERS])
        for record in found:
            if hmac.compare_digest(record.sha256, sha256):
                if keys.is_use_news(record):
                    with self._database.transaction() as session:
                        keys.note_use(session, record.id)
                scopes = frozenset(Scope(scope) for scope in record.scopes)
                return Caller(record.tenant, scopes, record.max_priority, record.id)
        raise Unauthorized(say("key_invalid"))

    def is_still_valid(self, caller: Caller) -> bool:
        """Whether an authenticated caller's key has neither been revoked nor expired since."""
        if caller.key_id in (LOCAL.key_id, _ADMIN.key_id):
            return True
        with self._database.reading() as session:
            return keys.is_valid(session, caller.key_id)

    def create(
        self,
        tenant: str,
        scopes: Collection[Scope],
        name: str | None = None,
        expires_in_s: float | None = None,
        max_priority: int = 0,
    ) -> tuple[KeyRecord, str]:
        """A new key: its record, and the key itself, which cannot be retrieved again."""
        key = _PREFIX + secrets.token_urlsafe(32)
        with self._database.transaction() as session:
            record = keys.insert(
                session,
                {
                    "tenant": tenant,
                    "scopes": sorted(scopes),
                    "name": name,
                    "max_priority": max_priority,
                    "prefix": key[:_SHOWN_LETTERS],
                    "sha256": _sha256(key),
                },
                expires_in_s,
            )
        return record, key

    def made_keys(self) -> list[KeyRecord]:
        """All keys, newest first."""
        with self._database.reading() as session:
            return list(keys.every(session))

    def revoke(self, key_id: str) -> KeyRecord:
        """Revokes a key permanently. Revoking twice is harmless. Raises `NotFound`."""
        with self._database.transaction() as session:
            keys.revoke(session, key_id)
            record = keys.get(session, key_id)
        if record is None:
            raise NotFound(say("not_found.key", id=key_id))
        return record


def _sha256(key: str) -> str:
    # 256 random bits cannot be guessed, so no slow hash is needed.
    return hashlib.sha256(key.encode()).hexdigest()
