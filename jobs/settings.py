"""Settings of the service, from environment variables prefixed `TAFDIL_`. Each process reads them once, at start."""

import os
from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# The small model that ships; looked for after the user's own models. A path, not an import: jobs knows no other room.
SHIPPED_MODELS_DIR = Path(__file__).resolve().parent.parent / "tafdil" / "shipped" / "models"


class Settings(BaseSettings):
    """Where things are and how long they may take."""

    model_config = SettingsConfigDict(env_prefix="TAFDIL_", extra="ignore", protected_namespaces=())

    data_dir: Path = Field(Path("tafdil-data"), description="Datasets, runs, logs, and the SQLite database by default.")
    models_dir: Path | None = Field(None, description="Models by name: `<models_dir>/Qwen/Qwen2.5-0.5B-Instruct`.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; default SQLite below the data directory.")
    redis_url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="Broker and wake-ups.")
    redis_prefix: str = Field("tafdil:", description="Put before every key and channel.")
    allow_hub: bool = Field(False, description="Load models that are not on disk from the Hugging Face hub.")

    max_body_bytes: int = Field(2**20, ge=1024, description="Largest JSON body.")
    max_upload_bytes: int = Field(4 * 2**30, ge=1024, description="Largest dataset.")
    max_wait_s: float = Field(120, gt=0, description="Longest `wait_s` of a comparison.")

    lease_s: float = Field(60, gt=0, description="A running attempt that is not renewed for so long is lost.")
    heartbeat_s: float = Field(10, gt=0, description="Time between two renewals.")
    dispatch_s: float = Field(5, gt=0, description="Time between two rounds of the dispatcher.")
    republish_s: float = Field(30, gt=0, description="A queued job that nobody claimed is published again after so long.")
    cancel_poll_s: float = Field(0.5, gt=0, description="Time between two looks for a cancel.")
    term_grace_s: float = Field(5, gt=0, description="From TERM to KILL on a cancel.")
    drain_grace_s: float = Field(60, gt=0, description="Time to save a checkpoint when the worker shuts down.")
    max_losses: int = Field(3, ge=1, description="Lost workers without progress, after which a job is poisoned.")
    warm_models: int = Field(3, ge=1, description="Models that a generation worker keeps loaded.")

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
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

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
