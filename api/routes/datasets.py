"""Datasets: upload, list, show."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.dependencies import MOST, Datasets, Id
from api.errors import responses
from api.schemas import Dataset, DatasetPage, DatasetRemoval, DatasetRows
from jobs.spec import PlainText
from trainer_core.errors import DataInvalid

router = APIRouter(prefix="/datasets", tags=["datasets"])

_BODY = {
    "requestBody": {
        "required": True,
        "description": "JSONL with one row a line, or JSON with `train` and optionally `validation` lists of rows, either "
        "of them gzipped; or Parquet. Sent as it is: `curl --data-binary @rows.jsonl`.",
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


@router.post("", status_code=201, responses=responses(408, 413, 422), openapi_extra=_BODY)
async def upload(
    request: Request,
    datasets: Datasets,
    response: Response,
    name: Annotated[PlainText | None, Query(min_length=1, max_length=200, description="A name for people.")] = None,
) -> Dataset:
    """Receives a dataset and checks every row while it arrives. A broken row refuses the file and is named by line."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise DataInvalid("send the file itself as the body, not a form: curl --data-binary @rows.jsonl")
    receiving = await run_in_threadpool(datasets.begin_upload, name)
    try:
        async for data in request.stream():
            await run_in_threadpool(receiving.write, data)
        record = await run_in_threadpool(receiving.finish)
    finally:
        await run_in_threadpool(receiving.abort)
    response.headers["Location"] = f"/v1/datasets/{record.id}"
    return Dataset.of(record)


@router.get("", responses=responses(404))
def list_datasets(
    datasets: Datasets,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$", description="`next_cursor` of a page.")] = None,
) -> DatasetPage:
    """Datasets, newest first."""
    found = datasets.datasets(limit + 1, cursor)
    shown = found[:limit]
    next_cursor = shown[-1].id if len(found) > limit else None
    return DatasetPage(datasets=[Dataset.of(record) for record in shown], next_cursor=next_cursor)


@router.delete("/{dataset_id}", responses=responses(404, 409))
def remove(dataset_id: Id, datasets: Datasets) -> DatasetRemoval:
    """Deletes a dataset. Refused while a job that is not over uses it."""
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


@router.get("/{dataset_id}", responses=responses(404))
def show(dataset_id: Id, datasets: Datasets) -> Dataset:
    """A dataset and what was found in it."""
    return Dataset.of(datasets.dataset(dataset_id))
