"""Filters broker messages down to the name of one of our tasks and one id. Nothing else in a message reaches Celery.

Anyone who can reach the broker can write anything to a queue. Celery obeys much of it: time limits, future start times,
follow-up tasks. Some messages crash a worker, which then requeues the message for the next one.
"""

import base64
import json
import logging
import re
import uuid
from typing import Any

from kombu.transport import redis

from jobs.queue import CHECK_TASK, COMPARE_TASK, EXPORT_TASK, TRAIN_TASK

_TASKS = frozenset({TRAIN_TASK, COMPARE_TASK, CHECK_TASK, EXPORT_TASK})
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_BODY_LETTERS = 2000
_NO_OTHERS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

log = logging.getLogger(__name__)


class Channel(redis.Channel):
    """Skips anything that is not a message."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:
            log.warning("skipped broker data that is not a message: %s", type(error).__name__)
            return True


class Transport(redis.Transport):
    """Passes on our own messages and drops all others."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        known = plain(message, queue)
        if known is None:
            log.warning("dropped a message on the queue %.40r that is not ours", queue)
            return
        super()._deliver(known, queue)


def plain(message: Any, queue: str) -> dict[str, Any] | None:
    """A message reduced to its task and id; None if it lacks either."""
    try:
        task, body = message["headers"]["task"], message["body"]
        if message["content-type"] != "application/json" or len(body) > _MOST_BODY_LETTERS:
            return None
        (subject_id,) = json.loads(base64.b64decode(body, validate=True))[0]
    except (KeyError, TypeError, ValueError, IndexError, RecursionError):
        return None
    if not (isinstance(task, str) and task in _TASKS and isinstance(subject_id, str) and _ID.fullmatch(subject_id)):
        return None
    message_id = str(uuid.uuid4())
    return {
        "body": base64.b64encode(json.dumps([[subject_id], {}, _NO_OTHERS]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": task,
            "id": message_id,
            "argsrepr": subject_id,
            "kwargsrepr": "",
            "ignore_result": True,
        },
        "properties": {
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_mode": 2,
            "delivery_tag": message_id,
        },
    }
