"""Responses about comparisons over held-out prompts."""

from typing import Any

from pydantic import BaseModel, Field

from api.schemas import StoredTask
from trainer_core.held_out import Outcome


class HeldOutAnswer(BaseModel):
    """Both models' answers to one held-out prompt."""

    row: int | str = Field(description="The row that the prompt is from: its line; with several datasets `name:line`.")
    prompt: str | list[dict[str, Any]]
    trained_model_response: str
    reference_model_response: str
    margin: float | None = Field(
        description="How much more the trained model's implicit reward gives its own answer; null if it is not finite."
    )
    flags: list[str] = Field(description="`repetition`, `foreign_script`, `length_ratio`.")
    outcome: Outcome


class HeldOutResult(BaseModel):
    """How the trained model's answers to held-out prompts compare with the reference's, by its own implicit reward."""

    asked: int
    prompts: int = Field(description="Answered so far; equal to `asked` at the end.")
    better: int
    ties: int = Field(description="Both answers are the same.")
    worse: int
    broken: int = Field(description="Flagged, and not better whatever the reward says.")
    share: float = Field(description="Better, with a tie as a half.")
    low: float = Field(description="Lower end of the 95% interval of `share`.")
    high: float
    answers: list[HeldOutAnswer]


class HeldOut(StoredTask):
    """A comparison over held-out prompts; `result` is set once the state is `succeeded`."""

    job_id: str
    request: dict[str, Any]
    result: HeldOutResult | None  # pyright: ignore[reportIncompatibleVariableOverride]


class HeldOutPage(BaseModel):
    """Comparisons over held-out prompts, newest first, without their answers."""

    comparisons: list[HeldOut]
    next_cursor: str | None
