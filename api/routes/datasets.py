"""Datasets: upload, list, show."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.dataset_schemas import Dataset, DatasetCheck, DatasetPage, DatasetRemoval, DatasetRows
from api.dependencies import MOST, Datasets, Id
from api.errors import responses
from api.files import table_response
from api.metrics import UploadMetrics
from api.reading import Options
from jobs.spec import ID, PlainText
from trainer_core.errors import DataInvalid, TafdilError
from trainer_core.wording import say

router = APIRouter(prefix="/datasets", tags=["datasets"])

_BODY = {
    "requestBody": {
        "required": True,
        "description": "A file of rows as the raw body: `curl --data-binary @rows.jsonl`. Its kind is detected from the "
        "content: JSONL, JSON with `train` and optionally `validation` lists of rows, CSV, TSV, a workbook (such as "
        "`.xlsx`), Parquet or Arrow; also compressed.",
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"prompt": "ما هو الذكاء الاصطناعي؟", "completion": "مجال من علوم الحاسوب.", "label": true}\n',
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["train"],
                    "properties": {name: {"type": "array", "items": {"type": "object"}} for name in ("train", "validation")},
                },
                "example": {
                    "train": [{"prompt": "ما عكس كبير؟", "chosen": "عكس كبير هو صغير.", "rejected": "صغير. اسأل غيري."}]
                },
            },
        },
    }
}


@router.post("", status_code=201, responses=responses(408, 413, 422, 507), openapi_extra=_BODY)
async def upload(
    request: Request,
    datasets: Datasets,
    response: Response,
    options: Options,
    name: Annotated[PlainText | None, Query(min_length=1, max_length=200, description="A name for the dataset.")] = None,
) -> Dataset:
    """Uploads a dataset and checks every row as it arrives. Errors name invalid rows by line.

    A file that can be read in several ways is refused with `data_unclear`; its `question` says which parameter to set.
    """
    with _counted(request):
        _refuse_forms(request)
        receiving = await run_in_threadpool(datasets.begin_upload, name, options)
        try:
            async for data in request.stream():
                await run_in_threadpool(receiving.write, data)
            record = await run_in_threadpool(receiving.finish)
        finally:
            await run_in_threadpool(receiving.abort)
    found = Dataset.of(record)
    _metrics(request).stored(found.file_kind)
    response.headers["Location"] = f"/v1/datasets/{record.id}"
    return found


@router.post("/check", responses=responses(408, 413, 422, 507), openapi_extra=_BODY)
async def check(request: Request, datasets: Datasets, options: Options) -> DatasetCheck:
    """Reads a file like an upload, but stores nothing. Returns how it was read, its first rows, and any error.

    For a file that an upload would refuse, the status is still 200; `valid` is false, and `error` says why.
    """
    _refuse_forms(request)
    receiving = await run_in_threadpool(datasets.begin_check, options)
    try:
        async for data in request.stream():
            await run_in_threadpool(receiving.write, data)
        return DatasetCheck.of(await run_in_threadpool(receiving.finish))
    finally:
        await run_in_threadpool(receiving.abort)


def _refuse_forms(request: Request) -> None:
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise DataInvalid(say("body_is_form"))


def _metrics(request: Request) -> UploadMetrics:
    return request.app.state.upload_metrics


@contextmanager
def _counted(request: Request) -> Generator[None]:
    """Counts refused uploads."""
    try:
        yield
    except TafdilError as error:
        _metrics(request).refused(error.code)
        raise


@router.get("", responses=responses(404))
def list_datasets(
    datasets: Datasets,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=ID, description="`next_cursor` of a page.")] = None,
) -> DatasetPage:
    """Datasets, newest first."""
    found = datasets.datasets(limit + 1, cursor)
    shown = found[:limit]
    next_cursor = shown[-1].id if len(found) > limit else None
    return DatasetPage(datasets=[Dataset.of(record) for record in shown], next_cursor=next_cursor)


@router.delete("/{dataset_id}", responses=responses(404, 409))
def remove(dataset_id: Id, datasets: Datasets) -> DatasetRemoval:
    """Deletes a dataset. Refused while an unfinished job uses it."""
    return DatasetRemoval(dataset_id=dataset_id, freed_bytes=datasets.remove(dataset_id))


@router.get("/{dataset_id}/rows", responses=responses(404))
def rows(
    dataset_id: Id,
    datasets: Datasets,
    first: Annotated[int, Query(ge=1, le=MOST, description="The first row, counted from 1.")] = 1,
    count: Annotated[int, Query(ge=1, le=200)] = 20,
) -> DatasetRows:
    """Training rows as they are in the file, each with its line as `row`."""
    return DatasetRows(dataset_id=dataset_id, rows=datasets.rows(dataset_id, first, count))


@router.get(
    "/{dataset_id}/broken",
    response_class=Response,
    responses={**responses(404), 200: {"content": {"text/csv": {}}, "description": "The rows as a table"}},
)
def broken(dataset_id: Id, datasets: Datasets) -> Response:
    """The rows that an upload with `on_invalid=skip` skipped, as CSV, each with its line and errors.

    The CSV is UTF-8 with a byte order mark. An apostrophe precedes cells that a spreadsheet would run as a formula.
    Uploading the corrected table removes it if `line` and `problem` are still the first columns.
    """
    return table_response(datasets.broken(dataset_id), f"{dataset_id[:8]}-broken-rows.csv")


@router.get("/{dataset_id}", responses=responses(404))
def show(dataset_id: Id, datasets: Datasets) -> Dataset:
    """A dataset and what was found in it."""
    return Dataset.of(datasets.dataset(dataset_id))
