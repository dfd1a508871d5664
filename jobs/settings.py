"""Settings of the service, from environment variables prefixed `TAFDIL_`. Each process reads them once, at start."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# The small model that ships, searched after the user's own. A path, not an import: `jobs` imports no other package.
SHIPPED_MODELS_DIR = Path(__file__).resolve().parent.parent / "tafdil" / "shipped" / "models"
GPU_CLASS = r"^[a-z0-9][a-z0-9._-]{0,31}$"
GpuSharing = Literal["training_first", "share", "own"]
_SHARING_OF: dict[str, GpuSharing | None] = {"cpu": None, "own_gpu": "own", "shared_gpu": "share"}
GpuClass = Annotated[str, Field(pattern=GPU_CLASS)]


class Settings(BaseSettings):
    """Locations, limits and timeouts."""

    model_config = SettingsConfigDict(env_prefix="TAFDIL_", env_ignore_empty=True, extra="ignore", protected_namespaces=())

    data_dir: Path = Field(Path("tafdil-data"), description="Datasets, runs, logs, and the SQLite database by default.")
    models_dir: Path | None = Field(None, description="Models by name: `<models_dir>/Qwen/Qwen2.5-0.5B-Instruct`.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; default SQLite in the data directory.")
    artifacts_url: str | None = Field(
        None,
        description="An object store for jobs' files, as an fsspec URL such as `s3://bucket/prefix` (needs "
        "`tafdil[s3]` and the `AWS_` variables); default only the runs directory.",
    )
    redis_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="Broker and wake-ups.")
    redis_prefix: str = Field("tafdil:", description="Prefix of every key and channel.")
    report_at_upload: bool = Field(
        True, description="Compute the report about each uploaded dataset at once, rather than when somebody asks for it."
    )
    allow_hub: bool = Field(False, description="Load models that are not on disk from the Hugging Face hub.")
    hub_token: SecretStr | None = Field(
        None, description="Lets the exports worker push models to the Hugging Face hub; give it only to that worker."
    )
    hub_namespace: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,95}$",
        description="The account to push models to.",
    )

    admin_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Turns API keys on: every request then needs one, and this one creates the others (`tafdil keys "
        "create`). At least 32 characters, e.g. from `openssl rand -hex 32`.",
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1", "localhost", "[::1]"],
        description="Host names that the API answers to, without port, separated by commas. All others are refused, which "
        "stops web pages from reaching it through DNS rebinding.",
    )
    requests_per_minute: int = Field(1200, ge=1, description="Requests per minute that a key may send to each API process.")
    max_streams: int = Field(
        64,
        ge=1,
        description="Event streams and waiting requests (`wait_s`) that a key may hold open on each API process.",
    )
    quota_open_jobs: int | None = Field(None, ge=1, description="Unfinished jobs per tenant; default no limit.")
    quota_training_hours: float | None = Field(
        None, gt=0, description="Training hours per tenant in 30 days; default no limit."
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        description="Hours that a job may run before it is paused; default no limit. A job may set a lower limit itself.",
    )
    quota_dataset_bytes: int | None = Field(None, ge=1, description="Bytes of datasets per tenant; default no limit.")
    quota_open_tasks: int | None = Field(
        None,
        ge=1,
        description="Comparisons, dry runs, merges and other tasks per tenant that are not done; default no limit.",
    )

    max_body_bytes: int = Field(2**20, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(4 * 2**30, ge=1024, description="Largest dataset.")
    body_timeout_s: float = Field(
        30, gt=0, description="Time allowed for a complete JSON body, and the longest pause in an upload."
    )
    read_timeout_s: float = Field(
        60, gt=0, description="Time after which a client that has stopped reading its reply is disconnected."
    )
    max_wait_s: float = Field(120, gt=0, description="Longest `wait_s` of a comparison.")

    lease_s: float = Field(60, gt=0, description="Time without a renewal after which a running attempt is lost.")
    heartbeat_s: float = Field(10, gt=0, description="Time between renewals.")
    dispatch_s: float = Field(5, gt=0, description="Time between rounds of the dispatcher.")
    republish_s: float = Field(30, gt=0, description="Time after which an unclaimed job is published again.")
    request_poll_s: float = Field(0.5, gt=0, description="Time between checks for a cancel or a pause.")
    cancel_grace_s: float = Field(5, gt=0, description="Time from the interrupt to KILL on a cancel.")
    drain_grace_s: float = Field(
        60, gt=0, description="Time to reach a step boundary and save, on a pause or when the worker shuts down."
    )
    step_limit_s: float = Field(
        300, gt=0, description="Time without a sign of life after which training or evaluation counts as hung."
    )
    quiet_limit_s: float = Field(
        1800, gt=0, description="The same for preparing, loading and saving, which report no progress."
    )
    part_limit_s: float = Field(
        120,
        gt=0,
        description="Time without a sign of life after which `/readyz` reports a worker or the dispatcher as away, and "
        "`tafdil serve` restarts it.",
    )
    part: str | None = Field(
        None, max_length=100, description="This process's name in `/readyz`; default its kind, such as `train`."
    )
    max_losses: int = Field(3, ge=1, description="Attempts lost without a new checkpoint, after which a job is poisoned.")
    memory_pause_s: float = Field(
        30,
        ge=0,
        description="Pause before the retry of a run that was killed because other processes filled the memory. It doubles "
        "with each loss.",
    )
    task_limit_s: float = Field(
        900, gt=0, description="Time limit of a comparison, a dry run or a preview; past it, the task ends as `timeout`."
    )
    export_limit_s: float = Field(14_400, gt=0, description="The same for a merge or a push.")
    task_memory_gib: float | None = Field(
        None,
        gt=0,
        description="Memory limit of a task, in GiB, beyond what its process held before; past it, the task ends as "
        "`oom_host`. Default half of the machine's or control group's memory for dry runs and previews, three quarters for "
        "the others.",
    )
    warm_start: bool | Literal["gpu"] = Field(
        True,
        description="Import the training libraries once per train worker and fork each run, where there is no GPU. Takes "
        "about 400 MiB; `false` imports them in each run. `gpu` forks on a GPU too, which has not been tried on one yet.",
    )
    gpu_class: GpuClass | None = Field(None, description="This worker's class; it also takes jobs that name no class.")
    lock_dir: Path | None = Field(
        None, description="Directory of GPU locks, shared by all workers of a host; default the temporary directory."
    )
    gpu_sharing: GpuSharing | None = Field(
        None,
        description="How comparisons use a GPU; default not at all, on the CPU. `training_first`: they wait while a run "
        "holds it, and leave no model on it; `share`: they use it beside runs; `own`: it is theirs alone.",
    )
    generation_device: Literal["cpu", "own_gpu", "shared_gpu"] | None = Field(
        None,
        description="The older name of `TAFDIL_GPU_SHARING`: `own_gpu` means `own`, `shared_gpu` means `share`.",
    )
    warm_models_gib: float | None = Field(
        None,
        ge=0,
        description="Memory for models that a generation worker keeps loaded, in GiB; default half of what is free at its "
        "first answer. Models trained from one base share its weights.",
    )

    keep_checkpoints_days: float | None = Field(
        None, gt=0, description="Days after a job's end until its checkpoints are deleted; default never."
    )
    keep_jobs_days: float | None = Field(
        None, gt=0, description="Days after a job's end until it is deleted with all its files; default never."
    )
    cache_gib: float = Field(
        10,
        ge=0,
        description="Size limit of `cache/` in the data directory, where runs share tokenised rows and the reference's "
        "log-probabilities, in GiB. The least recently used files go first.",
    )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _lease_outlasts_heartbeats(self) -> Self:
        if self.heartbeat_s * 4 > self.lease_s:
            raise ValueError("TAFDIL_HEARTBEAT_S must be at most a quarter of TAFDIL_LEASE_S, so that one may be missed")
        if self.heartbeat_s * 4 > self.part_limit_s:
            raise ValueError("TAFDIL_HEARTBEAT_S must be at most a quarter of TAFDIL_PART_LIMIT_S")
        return self

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Self:
        if self.generation_device is not None:
            meant = _SHARING_OF[self.generation_device]
            if self.gpu_sharing not in (None, meant):
                raise ValueError("TAFDIL_GENERATION_DEVICE is the older name of TAFDIL_GPU_SHARING; set only the latter")
            self.gpu_sharing = meant
        return self

    @property
    def silence_s(self) -> float:
        """Seconds without word from its supervisor after which a training process exits, before the lease can expire.

        The lease has at least three quarters of its time left when the supervisor goes silent.
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
        """Directories to search for models, in order."""
        return [*([self.models_dir] if self.models_dir else []), SHIPPED_MODELS_DIR]

    @property
    def gpu_lock_dir(self) -> Path:
        return self.lock_dir or Path(tempfile.gettempdir())

    @property
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def cache_dir(self) -> Path:
        """What runs compute once and share. Anything in it may be deleted."""
        return self.data_dir / "cache"

    @property
    def runs_dir(self) -> Path:
        return self.data_dir / "runs"

    def make_directories(self) -> None:
        """Creates the data directory and its subdirectories, readable only by the owner."""
        for folder in (self.data_dir, self.datasets_dir, self.runs_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@lru_cache
def get_settings() -> Settings:
    """The settings of this process."""
    return Settings(_env_file=os.environ.get("TAFDIL_ENV_FILE"))  # pyright: ignore[reportCallIssue]
