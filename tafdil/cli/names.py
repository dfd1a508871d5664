"""Finds a job or a dataset by its id, the beginning of its id, its name, or `last`."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Annotated, Generic, Protocol, TypeVar

import typer

from tafdil.cli.context import usage
from tafdil.client import Client, Job
from tafdil.errors import NotFound
from tafdil.models import Dataset, Task
from trainer_core.wording import Message, say

JobName = Annotated[str, typer.Argument(metavar="JOB", help="An id or its beginning, a name, or `last` for the newest job.")]
DatasetName = Annotated[
    str, typer.Argument(metavar="DATASET", help="An id or its beginning, a name, or `last` for the newest dataset.")
]
NEWEST = "last"
_SHORTEST_PREFIX = 4
_LOOKED_THROUGH = 1000
_SHOWN_CANDIDATES = 10


class _Thing(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def created_at(self) -> datetime: ...


Thing = TypeVar("Thing", bound=_Thing)


@dataclass(frozen=True)
class _Kind(Generic[Thing]):
    """A kind of thing that has names.

    Attributes:
        noun: its name in messages.
        listed_by: the command that lists them.
        made_by: the command that makes one.
        by_id: asks the service for one. Raises `NotFound`.
        newest_first: returns at least the given number of them, if there are as many.
    """

    noun: str
    listed_by: str
    made_by: str
    by_id: Callable[[str], Thing]
    newest_first: Callable[[int], Iterable[Thing]]


def is_id(text: object) -> bool:
    """Whether a value is a full id."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{32}", text) is not None


def find_job(client: Client, name: str) -> Job:
    """The job that a person means. Raises `NotFound`, and `Usage` if several match."""
    jobs = _Kind("job", "tafdil list", "tafdil submit", client.job, lambda count: client.jobs(limit=count))
    return _found(jobs, name, _search(jobs, name))


def find_dataset(client: Client, name: str) -> Dataset:
    """The dataset that a person means. Raises `NotFound`, and `Usage` if several match."""
    datasets = _datasets(client)
    return _found(datasets, name, _search(datasets, name))


def cancelled_task(client: Client, name: str) -> Task | None:
    """Cancels the task with this id. None if there is none."""
    if not is_id(name):
        return None
    try:
        return client.cancel_task(name)
    except NotFound:
        return None


def search_dataset(client: Client, name: str) -> Dataset | None:
    """Like `find_dataset`, but None if no dataset matches."""
    return _search(_datasets(client), name)


def _datasets(client: Client) -> _Kind[Dataset]:
    return _Kind("dataset", "tafdil data list", "tafdil data upload", client.dataset, lambda _: client.datasets())


def _search(kind: _Kind[Thing], name: str) -> Thing | None:
    if is_id(name):
        return kind.by_id(name)
    if name == NEWEST:
        newest = next(iter(kind.newest_first(1)), None)
        if newest is None:
            hint = say("cli.make_one", command=kind.made_by)
            raise not_found(say(f"cli.none_yet.{kind.noun}"), hint)
        return newest
    found = [one for one in islice(kind.newest_first(_LOOKED_THROUGH), _LOOKED_THROUGH) if _is_meant(one, name)]
    if len(found) > 1:
        usage(_candidates(kind, name, found))
    return found[0] if found else None


def _is_meant(one: _Thing, name: str) -> bool:
    if len(name) >= _SHORTEST_PREFIX and one.id.startswith(name):
        return True
    # Keyboards and file systems encode the same Arabic letter as one code point or as two.
    return one.name is not None and unicodedata.normalize("NFC", one.name) == unicodedata.normalize("NFC", name)


def _candidates(kind: _Kind[Thing], name: str, found: Sequence[Thing]) -> Message:
    lines = [f"  {one.id}  {one.created_at:%Y-%m-%d %H:%M}  {one.name or ''}".rstrip() for one in found]
    listed = "\n".join(lines[:_SHOWN_CANDIDATES])
    message = say(f"cli.several.{kind.noun}", n=len(found), name=name, listed=listed)
    left = len(found) - _SHOWN_CANDIDATES
    return say("cli.several_more", message=message, n=left, command=kind.listed_by) if left > 0 else message


def not_found(message: Message, hint: Message) -> NotFound:
    """The error that the service returns for a missing thing."""
    return NotFound(404, {"code": "not_found", "message": message, "hint": hint})


def _found(kind: _Kind[Thing], name: str, one: Thing | None) -> Thing:
    if one is None:
        message = say(f"cli.none_matches.{kind.noun}", name=name, searched=_LOOKED_THROUGH)
        raise not_found(message, say("cli.list_them", command=kind.listed_by))
    return one
