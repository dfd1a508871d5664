"""The service's own errors, on the list of codes that the library has. See `trainer_core.errors` for the tree's root.

TafdilError
├── NotFound               no such job, dataset or comparison
├── StateConflict          the action does not apply to the current state
├── TooLarge               a body or file over its limit
├── ClientTooSlow          a client that sends, but not fast enough
├── IdempotencyConflict    a known Idempotency-Key with another request
├── Unauthorized           no key, or one that is not valid
├── Forbidden              a key that may not do this, or a request from where none may come
├── RateLimited            too many requests or too much asked for; `retry_after_s` says when it may work
└── (the library's errors, raised as they are)
"""

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from trainer_core.errors import TafdilError

# What any statement may raise; named here so that other rooms need not know the library.
DatabaseError = SQLAlchemyError
# Of these: what the database answers, or its absence causes; what no repetition helps; what a unique key refuses.
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
