"""The health check of workers and the dispatcher in containers: `python -m worker.health`.

Healthy means that the database and the broker answer, and that this container's part has given a sign of life lately. The
main process is there, or this would not run, but it may be frozen.
"""

import socket
import sys

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.queue import CeleryQueue
from jobs.repository import signs
from jobs.settings import get_settings


def main() -> int:
    settings = get_settings()
    database = Database(settings.database)
    try:
        with database.reading() as session:
            own = [part for part in signs.parts(session) if part.host == socket.gethostname()]
    except DatabaseError as error:
        print(f"database: {str(error).splitlines()[0]}")
        return 1
    finally:
        database.dispose()
    for part in own:
        if part.silent_s > settings.part_limit_s:
            print(f"{part.name}: no sign of life for {part.silent_s:.0f} s")
            return 1
    if not CeleryQueue(settings).is_up():
        print("broker: no answer")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
