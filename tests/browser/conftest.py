"""The browser, and a service with something to see."""

from collections.abc import Generator

import pytest
from pydantic import SecretStr

from jobs.settings import Settings
from tests.browser.chromium import browser
from tests.browser.seed import Seeded, seed
from tests.live import serving

__all__ = ["browser"]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Generator[Seeded]:
    folder = tmp_path_factory.mktemp("seeded")
    # Nothing listens on this port: the streams look by themselves.
    settings = Settings(data_dir=folder, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    settings.make_directories()
    with serving(settings) as live:
        yield seed(live)
