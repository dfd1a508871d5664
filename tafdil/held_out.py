"""What both clients and their jobs do with comparisons over held-out prompts."""

from collections.abc import AsyncGenerator, Generator
from typing import Any

from tafdil import calls
from tafdil.models import Event, HeldOut


class HeldOutCalls:
    """The methods of `Client`."""

    _do: Any
    _stream_events: Any

    def compare_held_out(self, job_id: str, wait_s: float = 60.0, **options: Any) -> HeldOut:
        """Asks both models prompts that the run did not train on, and counts the better answers.

        `options`: prompts (48), max_length (128). Its `result` is None if `wait_s` was too short; see `held_out`.
        """
        return self._do(calls.compare_held_out(job_id, wait_s, options))

    def compare_held_out_events(self, job_id: str, **options: Any) -> Generator[Event]:
        """Streams it: events `partial` with the counts so far, then `result` with the whole comparison, or `error`."""
        path = f"/v1/jobs/{job_id}/compare/held_out"
        return self._stream_events("POST", path, {}, params={"stream": True}, json=options)

    def held_out(self, job_id: str, comparison_id: str) -> HeldOut:
        return self._do(calls.held_out(job_id, comparison_id))

    def held_outs(self, job_id: str, limit: int = 10) -> list[HeldOut]:
        """Comparisons over held-out prompts, newest first, without their answers."""
        return self._do(calls.held_outs(job_id, limit))


class HeldOutOfJob:
    """The method of `Job`."""

    id: str
    _client: Any

    def compare_held_out(self, wait_s: float = 60.0, **options: Any) -> HeldOut:
        """As `Client.compare_held_out`."""
        return self._client.compare_held_out(self.id, wait_s, **options)


class AsyncHeldOutCalls:
    """The methods of `AsyncClient`."""

    _do: Any
    _stream_events: Any

    async def compare_held_out(self, job_id: str, wait_s: float = 60.0, **options: Any) -> HeldOut:
        """Asks both models prompts that the run did not train on, and counts the better answers.

        `options`: prompts (48), max_length (128). Its `result` is None if `wait_s` was too short; see `held_out`.
        """
        return await self._do(calls.compare_held_out(job_id, wait_s, options))

    def compare_held_out_events(self, job_id: str, **options: Any) -> AsyncGenerator[Event]:
        """Streams it: events `partial` with the counts so far, then `result` with the whole comparison, or `error`."""
        path = f"/v1/jobs/{job_id}/compare/held_out"
        return self._stream_events("POST", path, {}, params={"stream": True}, json=options)

    async def held_out(self, job_id: str, comparison_id: str) -> HeldOut:
        return await self._do(calls.held_out(job_id, comparison_id))

    async def held_outs(self, job_id: str, limit: int = 10) -> list[HeldOut]:
        """Comparisons over held-out prompts, newest first, without their answers."""
        return await self._do(calls.held_outs(job_id, limit))


class AsyncHeldOutOfJob:
    """The method of `AsyncJob`."""

    id: str
    _client: Any

    async def compare_held_out(self, wait_s: float = 60.0, **options: Any) -> HeldOut:
        """As `AsyncClient.compare_held_out`."""
        return await self._client.compare_held_out(self.id, wait_s, **options)
