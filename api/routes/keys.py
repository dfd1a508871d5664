"""API keys: create, list and revoke them (needs the `admin` scope), and sign a browser in with one."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, Strict

from api.dependencies import Id, KeyAccess
from api.errors import responses
from api.gate import SESSION_COOKIE
from api.schemas import Key, KeyList, NewKey
from jobs.access import LOCAL, Caller, Scope
from jobs.spec import TENANT, PlainText, Sent

router = APIRouter(tags=["keys"])


class KeyRequest(Sent):
    """A key to make."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tenant": "research", "scopes": ["write"]}]})

    tenant: str = Field("default", pattern=TENANT, description="The tenant whose jobs and datasets it can reach.")
    # Not strict: JSON has strings for Python's enumeration.
    scopes: list[Annotated[Scope, Strict(False)]] = Field(
        [Scope.WRITE], min_length=1, max_length=8, description="What it may do; `write` reads too."
    )
    name: PlainText | None = Field(None, min_length=1, max_length=200, description="For people.")
    expires_in_days: float | None = Field(None, gt=0, le=3650, description="Default: never.")
    max_priority: int = Field(0, ge=-100, le=100, description="The highest `priority` that its jobs may have.")


class SignIn(Sent):
    """A key, from a browser."""

    key: str = Field(min_length=1, max_length=500)


class Session(BaseModel):
    """The caller's identity, as the service sees it."""

    keys_are_on: bool
    tenant: str | None = Field(description="Null: not signed in.")
    scopes: list[Scope]
    max_priority: int | None

    @classmethod
    def of(cls, caller: Caller | None, *, keys_are_on: bool) -> "Session":
        return cls(
            keys_are_on=keys_are_on,
            tenant=caller.tenant if caller else None,
            scopes=sorted(caller.scopes) if caller else [],
            max_priority=caller.max_priority if caller else None,
        )


@router.post("/keys", status_code=201, responses=responses(401, 403))
def create(body: KeyRequest, access: KeyAccess, response: Response) -> NewKey:
    """Creates a key. Only this reply contains it."""
    days = body.expires_in_days
    record, key = access.create(
        body.tenant, set(body.scopes), body.name, None if days is None else days * 86_400, body.max_priority
    )
    response.headers["Cache-Control"] = "no-store"
    return NewKey(**Key.of(record).model_dump(), key=key)


@router.get("/keys", responses=responses(401, 403))
def list_keys(access: KeyAccess) -> KeyList:
    """All keys, newest first, without the secrets themselves, which are never stored."""
    return KeyList(keys=[Key.of(record) for record in access.made_keys()])


@router.delete("/keys/{key_id}", responses=responses(401, 403, 404))
def revoke(key_id: Id, access: KeyAccess) -> Key:
    """Revokes a key permanently. Its next request is refused."""
    return Key.of(access.revoke(key_id))


@router.get("/session", responses=responses(401))
def session(request: Request, access: KeyAccess) -> Session:
    """Who is signed in."""
    return Session.of(request.state.caller, keys_are_on=access.is_on)


@router.post("/session", responses=responses(401))
def sign_in(body: SignIn, request: Request, response: Response, access: KeyAccess) -> Session:
    """Signs a browser in: stores the key in a cookie that scripts cannot read and other sites' pages cannot send."""
    if not access.is_on:
        return Session.of(LOCAL, keys_are_on=False)
    caller = access.authenticate(body.key)
    options: dict[str, Any] = {"httponly": True, "samesite": "strict", "path": "/", "secure": request.url.scheme == "https"}
    response.set_cookie(SESSION_COOKIE, body.key, max_age=30 * 86_400, **options)
    return Session.of(caller, keys_are_on=True)


@router.delete("/session", status_code=204)
def sign_out(response: Response) -> None:
    """Signs a browser out."""
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
