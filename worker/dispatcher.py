"""The dispatcher: `python -m worker.dispatcher`. Publishes unclaimed work and revokes the leases of dead workers.

Any number may run: each action is a compare-and-set, or a message that may be sent twice.
"""

import logging
import signal
import threading
import time
from typing import Any

from sqlalchemy.orm import Session

from jobs import logs, quotas, retention
from jobs.database import Database, this_host
from jobs.errors import DatabaseError
from jobs.queue import CeleryQueue, JobQueue
from jobs.repository import dispatch, jobs, signs, tasks
from jobs.settings import Settings, get_settings
from worker.signs import Signs

log = logging.getLogger(__name__)

_CLEAN_EVERY_S = 600.0


def warn_of_other_host(session: Session, database: Database, settings: Settings) -> None:
    """Logs an error if two machines use the same SQLite database, which supports only one."""
    other = dispatch.other_host(session, this_host(), settings.lease_s) if database.serves_one_host else None
    if other:
        log.error("another machine (boot id %s) uses this SQLite database; several machines need PostgreSQL", other)


def run_round(database: Database, queue: JobQueue, settings: Settings) -> None:
    """One round: reap, pause what has reached a limit, then publish. Raises the database's errors."""
    with database.transaction() as session:
        warn_of_other_host(session, database, settings)
        gap_s = settings.dispatch_s + settings.heartbeat_s
        may_reap = dispatch.begin_round(session, gap_s, settings.heartbeat_s, this_host())
        jobs.shorten_leases(session, settings.lease_s)
        tasks.shorten_leases(session, settings.lease_s)
    reaped: list[str] = []
    if may_reap:
        with database.transaction() as session:
            reaped = [*jobs.reap(session, settings.max_losses), *tasks.reap(session, settings.max_losses)]
    for job_id in reaped:
        log.warning("%s: its worker's lease expired", job_id)
        queue.nudge(job_id)
    with database.transaction() as session:
        paused = quotas.enforce(session, settings)
    for job_id in paused:
        log.info("job %s has reached its limit of hours; it is being paused", job_id)
        queue.nudge(job_id)
    _publish_waiting(database, queue, settings)
    with database.transaction() as session:
        dispatch.end_round(session, settings.lease_s / 2)


def _publish_waiting(database: Database, queue: JobQueue, settings: Settings) -> None:
    with database.reading() as session:
        waiting_jobs = list(jobs.unclaimed(session, settings.republish_s))
        queued = jobs.queued_by_class(session)
        waiting_tasks = tasks.unclaimed(session, settings.republish_s)
    # A broker that refuses one message will refuse the next; the next round retries. Any message wakes a worker for the
    # next job, so once there are as many messages as queued jobs, more would only fill the broker.
    waiting = {gpu_class: queue.waiting(gpu_class) for gpu_class in {job.gpu_class for job in waiting_jobs}}
    for job in waiting_jobs:
        # A worker may have claimed the last job of a class between the two reads.
        if waiting[job.gpu_class] < queued.get(job.gpu_class, 0):
            if not queue.publish_training(job.id, job.gpu_class):
                return
            waiting[job.gpu_class] += 1
        with database.transaction() as session:
            jobs.mark_published(session, job.id)
    for task_id, kind in waiting_tasks:
        if not queue.publish_task(task_id, kind):
            return
        with database.transaction() as session:
            tasks.mark_published(session, task_id)


def main() -> None:
    logs.configure()
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
    own = Signs(database, settings, "dispatcher")
    told_at = -settings.heartbeat_s
    cleaned_at = -_CLEAN_EVERY_S
    while not ended.wait(settings.dispatch_s):
        try:
            run_round(database, queue, settings)
            if time.monotonic() - told_at >= settings.heartbeat_s:
                told_at = time.monotonic()
                own.give()
            if time.monotonic() - cleaned_at >= _CLEAN_EVERY_S:
                cleaned_at = time.monotonic()
                with database.transaction() as session:
                    signs.forget(session)
                retention.apply(database, queue, settings)
        except DatabaseError as error:
            log.warning("the database is away: %s", str(error).splitlines()[0])
        except Exception:
            # Keep running: without a dispatcher no lease is ever revoked, and the next round may succeed.
            log.exception("this round failed")
    own.end()


if __name__ == "__main__":
    main()
