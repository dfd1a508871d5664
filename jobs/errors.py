"""The service's own errors. They extend the library's list of codes; `trainer_core.errors` has the root of the tree.

TafdilError
├── NotFound               no such job, dataset or comparison
├── StateConflict          the action does not apply to the current state
├── TooLarge               a body or file over its limit
├── ClientTooSlow          a client that sends too slowly
├── IdempotencyConflict    a known Idempotency-Key with a different request
├── Unauthorized           a missing or invalid key
├── Forbidden              a key without permission, or a request from a forbidden origin
├── RateLimited            too many requests, or a quota reached; `retry_after_s` says when to retry
└── (the library's errors, unchanged)
"""

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from trainer_core.errors import TafdilError

# What any statement may raise, named here so that other packages need not import SQLAlchemy.
DatabaseError = SQLAlchemyError
# Subsets: what the database or its absence causes; errors that no retry fixes; a violated unique key.
StatementError = DBAPIError
BadStatement = (DataError, IntegrityError)
DuplicateKey = IntegrityError


class NotFound(TafdilError):
    code = "not_found"


class StateConflict(TafdilError):
    code = "state_conflict"


class TooLarge(TafdilError):
    code = "too_large"


class ClientTooSlow(TafdilError):
    code = "timeout"


class IdempotencyConflict(TafdilError):
    code = "idempotency_conflict"


class Unauthorized(TafdilError):
    code = "unauthorized"


class Forbidden(TafdilError):
    code = "forbidden"


class RateLimited(TafdilError):
    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: float = 60) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
