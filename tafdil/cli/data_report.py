"""`tafdil data report`: what a file or a dataset contains, and what a model could learn from it instead."""

from pathlib import Path
from typing import Annotated, Any

import typer

import tafdil
from tafdil.cli.context import Json, command, connection, emit, remark, show_json, told, usage
from tafdil.cli.listing import Column, show_listing
from tafdil.cli.names import find_dataset
from tafdil.cli.reading import Encoding, Maps, OnInvalid, Sheet, Threshold, options_of, told_of_data
from tafdil.cli.words import sentence
from trainer_core.data_report import Vocabulary, report_of_file, vocabulary_in
from trainer_core.reading_options import ReadingOptions
from trainer_core.wording import say

_PATIENCE_S = 600.0
_SHOWN_RULES = 8
_SHIPPED_MODELS = Path(tafdil.__file__).resolve().parent / "shipped" / "models"


@command
def report(
    data: Annotated[
        str, typer.Argument(metavar="FILE|DATASET", help="A file on this machine, or a dataset on the service.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Also count this model's tokens; for a file, a directory with a tokenizer.json or a shipped model."
        ),
    ] = None,
    maps: Maps = None,
    encoding: Encoding = None,
    sheet: Sheet = None,
    threshold: Threshold = None,
    on_invalid: OnInvalid = "refuse",
    as_json: Json = False,
) -> None:
    """Reports on a file or a dataset: shortcuts a model could learn instead, spelling, languages, duplicates, lengths.

    A file stays on this machine; nothing is sent. A dataset's report is computed once by the service.
    """
    path = Path(data)
    if path.is_file():
        options = options_of(maps, encoding, sheet, threshold, on_invalid)
        found = _of_file(path, model, options, as_json)
    else:
        found = _of_dataset(data, model)
    if as_json:
        show_json(found)
    else:
        _show(found)


def _of_file(path: Path, model: str | None, options: ReadingOptions, as_json: bool) -> dict[str, Any]:
    vocabulary = _vocabulary(model) if model else None
    with told_of_data("report", path, options, as_json):
        return report_of_file(path, vocabulary, options)
    raise AssertionError("the command ends where a file cannot be read")


def _of_dataset(name: str, model: str | None) -> dict[str, Any]:
    with connection() as client:
        task = client.report(find_dataset(client, name).id, model)
        return (task if task.result else client.wait_task(task.id, _PATIENCE_S)).result or {}


def _vocabulary(model: str) -> Vocabulary:
    for folder in (Path(model), _SHIPPED_MODELS / model):
        try:
            found = vocabulary_in(folder, model)
        except ImportError:
            usage(say("cli.report_no_tokenizers"))
        if found:
            return found
    return usage(say("cli.report_no_model", model=model))


def _show(found: dict[str, Any]) -> None:
    emit(say("cli.report_rows", rows=found["rows"], prompts=found["prompts"], sampled=found["sampled_rows"]))
    shortcuts = found["shortcuts"]
    if shortcuts["none"]:
        emit(sentence(shortcuts["none"]))
    if shortcuts["note"]:
        emit(sentence(shortcuts["note"]))
    for each in shortcuts["named"]:
        emit(sentence(each), "bold")
        emit(sentence(each["advice"]))
        for example in each["examples"][:1]:
            for side in ("chosen", "rejected", "completion"):
                if side in example:
                    emit(f"  {example['row']}  {side}  {told(example[side])}", "dim")
    for each in found["findings"]:
        if each["code"] != "shortcut":
            emit(sentence(each))
    rules = [
        (each["rule"], each["direction"], *(f"{each[name]:.1%}" for name in ("share", "low", "high")))
        for each in shortcuts["rules"][:_SHOWN_RULES]
    ]
    columns = [Column("rule", is_whole=True), Column("direction")]
    emit("")
    show_listing([*columns, *(Column(name, is_number=True) for name in ("right", "from", "to"))], rules)
    emit("")
    show_listing(_side_columns(found), _side_rows(found))
    remark(say("cli.report_json"))


def _side_columns(found: dict[str, Any]) -> list[Column]:
    numbers = ("texts", "words (median)", "characters (median)")
    with_tokens = (*numbers, "tokens per word") if found["tokens"] else numbers
    return [Column("side", is_whole=True), *(Column(name, is_number=True) for name in with_tokens)]


def _side_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    groups = {"": found["sides"], **found["varieties"]}
    for variety, sides in groups.items():
        for side, each in sides.items():
            tokens = found["tokens"]["sides"].get(side) if found["tokens"] and not variety else None
            own = (f"{tokens['tokens_per_word']:.2f}",) if tokens else ("",) if found["tokens"] else ()
            medians = (f"{each[name]['median']:,}" for name in ("words", "characters"))
            rows.append((f"{variety} {side}".strip(), f"{each['texts']:,}", *medians, *own))
    return rows
