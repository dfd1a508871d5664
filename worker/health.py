"""The health check of workers and the dispatcher in containers: `python -m worker.health`.

Healthy means that the database and the broker answer. The container's main process is alive, or this would not run.
"""

import sys

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.queue import CeleryQueue
from jobs.settings import get_settings


def main() -> int:
    settings = get_settings()
    database = Database(settings.database)
    try:
        with database.engine.connect():
            pass
    except DatabaseError as error:
        print(f"database: {str(error).splitlines()[0]}")
        return 1
    finally:
        database.dispose()
    if not CeleryQueue(settings).is_up():
        print("broker: no answer")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
