"""`tafdil methods`: the service's preference methods, and the fields of their job specs."""

import json
from typing import Annotated, Any

import typer

from tafdil.cli.context import Json, command, connection, emit, show_json, told
from tafdil.cli.listing import Column, show_listing
from tafdil.cli.names import not_found
from tafdil.models import Method, MethodField
from trainer_core.wording import say


@command
def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="Show the fields of its job spec.")] = None,
    as_json: Json = False,
) -> None:
    """Lists the methods or, for one method, every field of its job spec with default, bounds and help."""
    with connection() as client:
        found = client.methods()
    if name is None:
        show_json(list(found)) if as_json else _list(found)
        return
    method = next((each for each in found if name.lower() in (each.name, each.title.lower())), None)
    if method is None:
        known = [each.name for each in found]
        raise not_found(say("cli.no_method", name=name), say("cli.known_methods", methods=known))
    show_json(method) if as_json else _show(method)


def _list(found: list[Method]) -> None:
    rows = [(each.name, each.title, each.rows, f"arXiv:{each.paper}", each.description["en"]) for each in found]
    show_listing([Column("method", is_whole=True), *map(Column, ("title", "rows", "paper", "what it does"))], rows)


def _show(method: Method) -> None:
    emit(f"{told(method.title)}, {told(method.full_name)} (arXiv:{told(method.paper)})", "bold")
    emit(told(method.description["en"]))
    reference = "is part of the loss" if method.loss_needs_reference else "is not part of the loss"
    emit(f"Dataset kinds: {told(', '.join(method.dataset_kinds))}. The reference model {reference}.")
    # The fields that people set first come first, then the rest in the spec's order.
    fields = sorted(method.fields, key=lambda field: not field.is_main)
    rows = [(each.name, _default(each), each.describe(), each.help["en"]) for each in fields]
    show_listing([Column("field", is_whole=True), *map(Column, ("default", "takes", "help"))], rows)


def _default(field: MethodField) -> str:
    if field.required:
        return "required"
    return field.default if isinstance(field.default, str) else json.dumps(field.default, ensure_ascii=False)


COMMANDS: tuple[Any, ...] = (methods,)
