"""Settings of the service, from environment variables prefixed `TAFDIL_`. Each process reads them once, at start."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# The small model that ships; looked for after the user's own models. A path, not an import: jobs knows no other room.
SHIPPED_MODELS_DIR = Path(__file__).resolve().parent.parent / "tafdil" / "shipped" / "models"
GPU_CLASS = r"^[a-z0-9][a-z0-9._-]{0,31}$"
GpuClass = Annotated[str, Field(pattern=GPU_CLASS)]


class Settings(BaseSettings):
    """Where things are and how long they may take."""

    model_config = SettingsConfigDict(env_prefix="TAFDIL_", env_ignore_empty=True, extra="ignore", protected_namespaces=())

    data_dir: Path = Field(Path("tafdil-data"), description="Datasets, runs, logs, and the SQLite database by default.")
    models_dir: Path | None = Field(None, description="Models by name: `<models_dir>/Qwen/Qwen2.5-0.5B-Instruct`.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; default SQLite in the data directory.")
    artifacts_url: str | None = Field(
        None,
        description="An object store for what jobs leave behind, as fsspec names it: `s3://bucket/prefix` (needs "
        "`tafdil[s3]` and the `AWS_` variables); default the runs directory alone.",
    )
    redis_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="Broker and wake-ups.")
    redis_prefix: str = Field("tafdil:", description="Put before every key and channel.")
    allow_hub: bool = Field(False, description="Load models that are not on disk from the Hugging Face hub.")
    hub_token: SecretStr | None = Field(
        None, description="Lets the exports worker push models to the Hugging Face hub; give it to that worker alone."
    )
    hub_namespace: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,95}$",
        description="The account that models are pushed to.",
    )

    admin_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Turns API keys on: every request then needs one, and this one makes the others (`tafdil keys create`). "
        "At least 32 characters, e.g. of `openssl rand -hex 32`.",
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1", "localhost", "[::1]"],
        description="Names that the API may be called by, without port, separated by commas; others are refused, so that no "
        "web page can reach it under a name of its own.",
    )
    requests_per_minute: int = Field(
        1200, ge=1, description="Requests that a key may send in a minute, to each API process."
    )
    max_streams: int = Field(64, ge=1, description="Event streams that a key may hold open, at each API process.")
    quota_open_jobs: int | None = Field(None, ge=1, description="Jobs of a tenant that are not over; default no limit.")
    quota_training_hours: float | None = Field(
        None, gt=0, description="Hours that a tenant's trainings may take in 30 days; default no limit."
    )
    quota_dataset_bytes: int | None = Field(None, ge=1, description="Bytes of a tenant's datasets; default no limit.")

    max_body_bytes: int = Field(2**20, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(4 * 2**30, ge=1024, description="Largest dataset.")
    body_timeout_s: float = Field(
        30, gt=0, description="A JSON body must be complete after so long; an upload may stand still for so long."
    )
    read_timeout_s: float = Field(60, gt=0, description="A client that reads nothing of a reply for so long is given up.")
    max_wait_s: float = Field(120, gt=0, description="Longest `wait_s` of a comparison.")

    lease_s: float = Field(60, gt=0, description="A running attempt that is not renewed for so long is lost.")
    heartbeat_s: float = Field(10, gt=0, description="Time between two renewals.")
    dispatch_s: float = Field(5, gt=0, description="Time between two rounds of the dispatcher.")
    republish_s: float = Field(30, gt=0, description="A queued job that nobody claimed is published again after so long.")
    request_poll_s: float = Field(0.5, gt=0, description="Time between two looks for a cancel or a pause.")
    cancel_grace_s: float = Field(5, gt=0, description="From the interrupt to KILL on a cancel.")
    drain_grace_s: float = Field(
        60, gt=0, description="Time to reach a step boundary and save, on a pause or when the worker shuts down."
    )
    step_limit_s: float = Field(
        300, gt=0, description="A training or evaluation that shows no sign of life for so long hangs."
    )
    quiet_limit_s: float = Field(1800, gt=0, description="The same while preparing, loading and saving, which tell nothing.")
    max_losses: int = Field(3, ge=1, description="Attempts lost without a new checkpoint, after which a job is poisoned.")
    memory_pause_s: float = Field(
        30,
        ge=0,
        description="Pause before the retry of a run that was killed because other processes filled the memory. It doubles "
        "with each loss.",
    )
    warm_start: bool | Literal["gpu"] = Field(
        True,
        description="Import the training libraries once per train worker and fork each run, where there is no GPU. Takes "
        "about 400 MiB; `false` imports them in each run. `gpu` forks on a GPU too, which has not been tried on one yet.",
    )
    gpu_class: GpuClass | None = Field(None, description="This worker's class; it also takes jobs that name no class.")
    lock_dir: Path | None = Field(
        None, description="Where a GPU's lock is, the same for all workers of a host; default the temporary directory."
    )
    generation_device: Literal["cpu", "own_gpu", "shared_gpu"] = Field(
        "cpu",
        description="Where comparisons are answered: `cpu`, a GPU of its `own_gpu`, or one `shared_gpu` with training.",
    )
    warm_models_gib: float | None = Field(
        None,
        ge=0,
        description="Memory of the models that a generation worker keeps loaded, in GiB; default half of what is free when "
        "it answers first. Trainings on one base share its weights.",
    )

    keep_checkpoints_days: float | None = Field(
        None, gt=0, description="Checkpoints are deleted so long after their job's end; default never."
    )
    keep_jobs_days: float | None = Field(
        None, gt=0, description="Jobs are deleted with all their files so long after their end; default never."
    )
    cache_gib: float = Field(
        10,
        ge=0,
        description="What trainings may keep for each other in `cache/` of the data directory, in GiB: tokenised rows and "
        "the reference's log-probabilities. What was used longest ago goes first.",
    )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _lease_outlasts_heartbeats(self) -> Self:
        if self.heartbeat_s * 4 > self.lease_s:
            raise ValueError("TAFDIL_HEARTBEAT_S must be at most a quarter of TAFDIL_LEASE_S, so that one may be missed")
        return self

    @property
    def silence_s(self) -> float:
        """A training that does not hear of its supervisor for so long leaves, before the lease can run out.

        The lease has at least three quarters of its time left when the supervisor falls silent.
        """
        return 0.65 * self.lease_s

    @property
    def database(self) -> str:
        """The SQLAlchemy URL."""
        if self.database_url:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir.resolve() / 'tafdil.sqlite3'}"

    @property
    def model_dirs(self) -> list[Path]:
        """Where models are looked for, in order."""
        return [*([self.models_dir] if self.models_dir else []), SHIPPED_MODELS_DIR]

    @property
    def gpu_lock_dir(self) -> Path:
        return self.lock_dir or Path(tempfile.gettempdir())

    @property
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def cache_dir(self) -> Path:
        """What trainings compute once for each other. Anything in it may be deleted."""
        return self.data_dir / "cache"

    @property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    def make_directories(self) -> None:
        """Creates the data directory and what is below it, readable by the owner alone."""
        for folder in (self.data_dir, self.datasets_dir, self.runs_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@lru_cache
def get_settings() -> Settings:
    """The settings of this process."""
    return Settings(_env_file=os.environ.get("TAFDIL_ENV_FILE"))  # pyright: ignore[reportCallIssue]
