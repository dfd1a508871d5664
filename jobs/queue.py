"""The queue: Celery on Redis, and wake-ups over Redis pub/sub.

SQL is the source of truth. A message only wakes a worker, which then claims by SQL: a lost message costs one dispatcher
round, a duplicate costs nothing. So publishing never fails a request, and nothing waits long for the broker: a call that
times out suspends further calls for a while.
"""

import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol, TypeVar

from celery import Celery
from redis import Redis

from jobs.settings import Settings
from jobs.states import ANSWERED_BY, TaskKind, TaskWorker

TRAIN_TASK = "tafdil.train"
COMPARE_TASK = "tafdil.compare"
CHECK_TASK = "tafdil.check"
EXPORT_TASK = "tafdil.export"
TRAIN_QUEUE = "train"
COMPARE_QUEUE = TaskWorker.COMPARE.value
CHECK_QUEUE = TaskWorker.CHECKS.value
EXPORT_QUEUE = TaskWorker.EXPORTS.value
_TASKS = {TaskWorker.COMPARE: COMPARE_TASK, TaskWorker.CHECKS: CHECK_TASK, TaskWorker.EXPORTS: EXPORT_TASK}

# How long a call may wait for the broker, which normally answers within milliseconds.
_ANSWER_S = 1.0
# How long to leave the broker alone after a call without an answer.
_PAUSE_S = 2.0

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class JobQueue(Protocol):
    """What the service needs from a queue. No method raises."""

    def publish_training(self, job_id: str, gpu_class: str | None = None) -> bool:
        """Wakes a train worker, of the given class if any. False if the message could not be sent."""
        ...

    def publish_task(self, task_id: str, kind: TaskKind) -> bool:
        """Wakes a worker for this kind of task. False if the message could not be sent."""
        ...

    def waiting(self, gpu_class: str | None) -> int:
        """Number of unclaimed messages for train workers of the class; 0 if the broker does not answer."""
        ...

    def nudge(self, subject_id: str) -> None:
        """Wakes everyone waiting for news of a job or task."""
        ...

    def is_up(self) -> bool:
        """Whether the broker answers."""
        ...


def make_celery(settings: Settings, *, answer_s: float | None = None) -> Celery:
    """The Celery application of every process. Each non-default setting has its reason beside it.

    Args:
        answer_s: seconds that a call may wait for the broker, without retries; for processes that only publish. A worker
            waits longer, as its reads block.
    """
    app = Celery("tafdil", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        # Reads only the task's name and one id from a message.
        broker_transport="jobs.broker:Transport",
        # SQL holds the job, so messages are acknowledged early: with late acknowledgement a message would be
        # redelivered after each visibility timeout while the run continues.
        task_acks_late=False,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_reject_on_worker_lost=False,
        # A prefetched message would wait behind a run while other workers idle.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_proc_alive_timeout=60,
        worker_soft_shutdown_timeout=0,
        worker_hijack_root_logger=False,
        task_time_limit=None,
        task_soft_time_limit=None,
        result_backend=None,
        task_ignore_result=True,
        worker_send_task_events=False,
        # Unused, and it would let anyone who can reach the broker stop workers.
        worker_enable_remote_control=False,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_publish_retry=False,
        task_default_queue=TRAIN_QUEUE,
        task_create_missing_queues=True,
        broker_transport_options={
            # Only covers messages delivered but not yet accepted, a matter of milliseconds.
            "visibility_timeout": 900,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "global_keyprefix": settings.redis_prefix,
            "socket_keepalive": True,
            "socket_connect_timeout": answer_s or 5,
            "socket_timeout": answer_s or 30,
            "health_check_interval": 25,
            "retry_on_timeout": answer_s is None,
            **({"max_retries": 0, "connect_retries_timeout": answer_s} if answer_s else {}),
        },
    )
    return app


def train_queue(gpu_class: str | None) -> str:
    """The queue of a worker class; for None, that of all train workers."""
    return f"{TRAIN_QUEUE}.{gpu_class}" if gpu_class else TRAIN_QUEUE


def events_channel(settings: Settings) -> str:
    """The pub/sub channel for wake-ups."""
    return f"{settings.redis_prefix}events"


class CeleryQueue:
    """`JobQueue` on Celery and Redis. A call waits a few seconds at most, or not at all right after a failed one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel, self._prefix = events_channel(settings), settings.redis_prefix
        self._redis: Any = Redis.from_url(
            settings.redis_url.get_secret_value(), socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S
        )
        self._away_until = 0.0

    def publish_training(self, job_id: str, gpu_class: str | None = None) -> bool:
        return self._send(TRAIN_TASK, job_id, train_queue(gpu_class))

    def publish_task(self, task_id: str, kind: TaskKind) -> bool:
        worker = ANSWERED_BY[kind]
        return self._send(_TASKS[worker], task_id, worker.value)

    def waiting(self, gpu_class: str | None) -> int:
        return self._call(lambda: int(self._redis.llen(f"{self._prefix}{train_queue(gpu_class)}"))) or 0

    def nudge(self, subject_id: str) -> None:
        self._call(lambda: self._redis.publish(self._channel, subject_id))

    def is_up(self) -> bool:
        return self._call(self._redis.ping, at_once=True) is not None

    def close(self) -> None:
        self._redis.close()
        if "_publisher" in self.__dict__:
            self._publisher.close()

    @cached_property
    def _publisher(self) -> Celery:
        return make_celery(self._settings, answer_s=_ANSWER_S)

    def _send(self, task: str, argument: str, queue: str) -> bool:
        return self._call(lambda: self._publisher.send_task(task, args=[argument], queue=queue)) is not None

    def _call(self, ask: Callable[[], Answer], *, at_once: bool = False) -> Answer | None:
        """The broker's answer; None if it gave none, or failed to answer a moment ago.

        Args:
            at_once: ask although it failed to answer a moment ago.
        """
        if not at_once and time.monotonic() < self._away_until:
            return None
        try:
            answer = ask()
        except Exception as error:
            # kombu, redis and the operating system raise their own errors; none may fail the caller. Logged once for each
            # time that the broker goes away.
            log.log(logging.DEBUG if self._away_until else logging.WARNING, "the broker does not answer (%s)", error)
            self._away_until = time.monotonic() + _PAUSE_S
            return None
        self._away_until = 0.0
        return answer
