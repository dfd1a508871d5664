"""The command that asks the trained model and its reference."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn

from tafdil.cli.context import Json, command, connection, console, emit, show_json, told, usage
from tafdil.cli.names import JobName, find_job
from tafdil.cli.words import in_words
from tafdil.client import Client
from tafdil.errors import ApiError, WaitTimeout, status_of
from tafdil.models import Comparison
from trainer_core.held_out import MOST_PROMPTS
from trainer_core.wording import Message, rounded, say

# Of the answers of a held-out comparison: those that people want to read first.
_SHOWN_ANSWERS = 5


@command
def compare(
    job: JobName,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to ask both models.")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Ask prompts that the run did not train on, and count the better answers.")
    ] = False,
    count: Annotated[
        int, typer.Option("--prompts", min=1, max=MOST_PROMPTS, help="With `--held-out`: how many prompts.")
    ] = 48,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum new tokens per answer; by default 256, or what the prompt leaves room for."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; above 0 samples.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of sampling.")] = None,
    wait_s: Annotated[float, typer.Option(min=0, help="How long to wait for an answer, in seconds.")] = 100.0,
    as_json: Json = False,
) -> None:
    """Asks the trained model and its reference, and shows both answers with proof of which weights gave them."""
    if bool(prompts) == held_out:
        usage(say("cli.prompts_or_held_out"))
    with connection() as client:
        found = find_job(client, job)
        if held_out:
            asked = {"prompts": count} | ({"max_length": max_length} if max_length else {})
            _show_held_out(_held_out(client, found.id, asked, as_json), as_json)
            return
        options = {"max_length": max_length, "temperature": temperature, "seed": seed}
        answers = [found.compare(prompt, wait_s, **options) for prompt in prompts or ()]
    if as_json:
        show_json(list(answers))
        _all_answered(answers, wait_s)
        return
    for answer in answers:
        if answer.result is None:
            continue
        result, proof = answer.result, answer.result["proof"]
        emit(f"\n{told(answer.request['prompt'])}", "bold")
        emit(f"  reference  {told(result['reference_model_response'])}")
        emit(f"  trained    {told(result['trained_model_response'])}")
        for line in judged(result):
            emit(f"  {in_words(line, sys.stdout)}")
        emit(f"  {_proof_line(proof, result.get('dtype'))}", "dim")
    _all_answered(answers, wait_s)


def judged(result: dict[str, Any]) -> Iterator[Message]:
    """What can be said about two answers: whether they differ, which one the trained model prefers, and what is wrong."""
    if result["trained_model_response"] == result["reference_model_response"]:
        yield say("cli.same_answers")
    elif (margin := result.get("margin")) is not None:
        yield say("cli.margin_own" if margin > 0 else "cli.margin_reference", margin=f"{rounded(margin):+g}")
    for flag in result.get("flags", ()):
        yield say(f"flag.{flag}")


def _held_out(client: Client, job_id: str, options: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """The comparison, after a progress bar on a terminal. Raises its error as an `ApiError`."""
    columns = (BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    bar = Progress(*columns, disable=as_json or not console.is_terminal)
    with bar, closing(client.compare_held_out_events(job_id, **options)) as events:
        task = bar.add_task("", total=options["prompts"])
        for event in events:
            if event.event == "error":
                raise ApiError.of(status_of(event.data), event.data)
            if event.event == "result":
                return event.data
            bar.update(task, completed=event.data["prompts"], total=event.data["asked"])
    raise WaitTimeout(say("cli.stream_ended"))


def _show_held_out(comparison: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(comparison)
        return
    result = comparison["result"]
    counts = {name: result[name] for name in ("better", "ties", "worse", "broken", "prompts")}
    emit(say("cli.held_out_counts", **counts), "bold")
    emit(say("cli.held_out_share", **{name: round(100 * result[name]) for name in ("share", "low", "high")}))
    # Broken answers first, then those that the model prefers least.
    order = ("broken", "worse", "tie", "better")
    answers = sorted(result["answers"], key=lambda each: (order.index(each["outcome"]), each["margin"] or 0.0))
    for answer in answers[:_SHOWN_ANSWERS]:
        prompt = answer["prompt"] if isinstance(answer["prompt"], str) else answer["prompt"][-1]["content"]
        emit(f"\n{told(prompt)}", "bold")
        emit(f"  reference  {told(answer['reference_model_response'])}")
        emit(f"  trained    {told(answer['trained_model_response'])}")
        for line in judged(answer):
            emit(f"  {in_words(line, sys.stdout)}")
    emit(say("cli.held_out_own_judgement"), "dim")


def _all_answered(answers: Sequence[Comparison], wait_s: float) -> None:
    late = [answer.id for answer in answers if answer.result is None]
    if late:
        raise WaitTimeout(say("cli.not_answered", late=len(late), asked=len(answers), seconds=wait_s, ids=late))


def _proof_line(proof: dict[str, Any], dtype: str | None) -> str:
    """`dtype`: the dtype of both sides; None in answers of earlier versions."""
    told = f", in {dtype}" if dtype else ""
    if proof.get("adapter_has_no_effect"):
        return f"The adapter has no effect{told}: both sides are the same model."
    sides = (str(proof.get(name, ""))[:12] for name in ("trained_fingerprint", "reference_fingerprint"))
    line = "weights {} and {}; largest logit difference {:.3g}".format(*sides, proof["max_logit_difference"])
    return f"{line}{told}; proof: {proof.get('covers', 'tensors only')}"


COMMANDS: Sequence[Any] = (compare,)
