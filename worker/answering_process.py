"""The supervisor's handle on an answering process (`worker.answering`): start it, hand it a task, hear its answer."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.records import TaskRecord
from worker.training_process import SupervisedProcess, pipes

# What answers need: to be found, to speak a language, the libraries' own settings and caches, whom to trust, the database,
# the store, the GPU. The rest may hold secrets.
_LET_IN = frozenset(
    {
        "CURL_CA_BUNDLE",
        "HOME",
        "HOSTNAME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TOKENIZERS_PARALLELISM",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
    }
)
_LET_IN_ALL = (
    "AWS_",
    "BNB_",
    "CUDA_",
    "HF_",
    "KMP_",
    "LC_",
    "MKL_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PG",
    "PYTHON",
    "TAFDIL_",
    "TORCH_",
    "TRANSFORMERS_",
)
_PROXIES = frozenset({"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"})
_KEPT_OUT = frozenset({"TAFDIL_ADMIN_KEY", "TAFDIL_REDIS_URL"})


def answering_environment(whole: Mapping[str, str]) -> dict[str, str]:
    """The variables that an answering process is given."""
    return {
        name: value
        for name, value in whole.items()
        if (name in _LET_IN or name.upper() in _PROXIES or name.startswith(_LET_IN_ALL)) and name not in _KEPT_OUT
    }


class AnsweringProcess(SupervisedProcess):
    """An answering process. It writes its log to this process's standard error.

    Args:
        module: the module with the answers.
        locks: file descriptors that the process inherits and keeps open.
    """

    def __init__(self, module: str, locks: Sequence[int] = ()) -> None:
        self.module = module
        with pipes() as (reports, write_end, given, its_input):
            process = self._launch(module, given, write_end, locks)
        super().__init__(process, reports, its_input)

    @staticmethod
    def _launch(module: str, given: int, reports: int, locks: Sequence[int]) -> Any:
        return subprocess.Popen(
            [sys.executable, "-m", "worker.answering", module, str(reports), str(os.getpid())],
            stdin=given,
            pass_fds=(reports, *locks),
            start_new_session=True,
            env=answering_environment(os.environ),
        )

    @property
    def descriptor(self) -> int | None:
        """Readable when there is something to hear; None once there will be no more reports."""
        return None if self._is_silent else self._reports

    @property
    def has_ended(self) -> bool:
        return self._has_ended(0)

    def hand(self, task: TaskRecord) -> None:
        """Hands it a task. Whether it takes it shows in its reports."""
        asked = {"task": task.id, "lease_token": task.lease_token, "attempt": task.attempt}
        self._say(json.dumps(asked).encode() + b"\n")

    def held_bytes(self) -> int:
        """Memory of it and its children now, without what they share; 0 if it is gone."""
        self.peak_memory_bytes = 0
        self.look_at_memory()
        return self.peak_memory_bytes
