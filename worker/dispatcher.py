"""The dispatcher: `python -m worker.dispatcher`. Publishes what nobody claimed and takes back what a dead worker held.

Any number may run: each action is a compare-and-set or a message that is harmless twice.
"""

import logging
import signal
import threading
from typing import Any

from jobs.database import Database
from jobs.errors import DatabaseError
from jobs.queue import CeleryQueue, JobQueue
from jobs.repository import comparisons, jobs
from jobs.settings import Settings, get_settings

log = logging.getLogger(__name__)


def run_round(database: Database, queue: JobQueue, settings: Settings) -> None:
    """One round: reap, then publish. Raises what the database raises."""
    with database.transaction() as session:
        reaped = [*jobs.reap(session, settings.max_losses), *comparisons.poison(session, settings.max_losses)]
    for job_id in reaped:
        log.warning("%s: its worker's lease ran out", job_id)
        queue.nudge(job_id)
    with database.transaction() as session:
        waiting_jobs = list(jobs.unclaimed(session, settings.republish_s))
        waiting_comparisons = list(comparisons.unclaimed(session, settings.republish_s))
    for job_id in waiting_jobs:
        if queue.publish_training(job_id):
            with database.transaction() as session:
                jobs.mark_published(session, job_id)
    for comparison_id in waiting_comparisons:
        if queue.publish_comparison(comparison_id):
            with database.transaction() as session:
                comparisons.mark_published(session, comparison_id)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = get_settings()
    settings.make_directories()
    database = Database(settings.database)
    database.migrate()
    queue = CeleryQueue(settings)
    ended = threading.Event()

    def end(*_: Any) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log.info("dispatching every %g s", settings.dispatch_s)
    while not ended.wait(settings.dispatch_s):
        try:
            run_round(database, queue, settings)
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])


if __name__ == "__main__":
    main()
