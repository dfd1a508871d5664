"""The train worker with the rig's training: `celery -A tests.rig.tasks worker`."""

import sys

from worker import supervisor
from worker.tasks import app

__all__ = ["app"]

supervisor.TRAINER = (sys.executable, "-m", "tests.rig.trainer")
