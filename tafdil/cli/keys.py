"""`tafdil keys`: manages API keys. Needs the admin key or a key with the `admin` scope."""

from typing import Annotated

import typer

from tafdil.cli.context import Json, command, connection, emit, remark, show_json
from tafdil.cli.listing import Column, show_listing
from trainer_core.wording import say

app = typer.Typer(no_args_is_help=True)


@app.command()
@command
def create(
    tenant: Annotated[str, typer.Option(help="The tenant whose jobs and datasets the key can reach.")] = "default",
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="read, write, metrics or admin. Repeat for more. Default write.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for the key.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; default never.")] = None,
    max_priority: Annotated[int, typer.Option(min=-100, max=100, help="The highest priority its jobs may have.")] = 0,
    as_json: Json = False,
) -> None:
    """Creates a key. It is printed once, alone on standard output, and never stored."""
    fields = {"name": name, "expires_in_days": days}
    with connection() as client:
        key = client.create_key(
            tenant=tenant,
            scopes=scopes or ["write"],
            max_priority=max_priority,
            **{field: value for field, value in fields.items() if value is not None},
        )
    if as_json:
        show_json(key)
        return
    print(key.key)
    remark(say("cli.key_made", tenant=key.tenant, scopes=list(key.scopes)))


@app.command("list")
@command
def list_keys(as_json: Json = False) -> None:
    """Lists keys, newest first, without the secrets themselves."""
    with connection() as client:
        found = client.keys()
    if as_json:
        show_json(list(found))
        return
    if not found:
        emit(say("cli.no_keys"))
        return
    rows: list[tuple[str, ...]] = []
    for key in found:
        state = (
            "revoked" if key.revoked_at else "expires " + key.expires_at.date().isoformat() if key.expires_at else "valid"
        )
        used = key.last_used_at.isoformat(" ", "minutes") if key.last_used_at else "never"
        rows.append((key.id, key.prefix, key.name or "", key.tenant, ", ".join(key.scopes), state, used))
    others = map(Column, ("begins", "name", "tenant", "scopes", "state", "last used"))
    show_listing([Column("id", is_whole=True), *others], rows)


@app.command()
@command
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="From `tafdil keys list`.")], as_json: Json = False
) -> None:
    """Revokes a key permanently. Its next request is refused."""
    with connection() as client:
        key = client.revoke_key(key_id)
    show_json(key) if as_json else emit(say("cli.key_revoked", id=key.id))
