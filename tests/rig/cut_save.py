"""A training of `test_resume.py` that dies by SIGKILL while it saves.

`python -m tests.rig.cut_save METHOD FOLDER FUNCTION`: the function of `trainer_core.checkpoints` in which it dies.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.fakes import RecordingObserver
from tests.integration.test_resume import settings
from trainer_core import PreferenceTrainer, checkpoints


def main() -> None:
    method, folder, function = sys.argv[1:]
    whole = getattr(checkpoints, function)

    def cut(path: Path, *args: Any) -> Any:
        if "-6-" in str(path):  # the staging directory of step 6
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(path, *args)

    setattr(checkpoints, function, cut)
    PreferenceTrainer(settings(method, Path(folder)), observer=RecordingObserver()).train()


if __name__ == "__main__":
    main()
