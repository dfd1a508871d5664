"""A cache gives back what was written, stays under its limit, and never gets in the way."""

import os
from pathlib import Path

from trainer_core.file_cache import FileCache


def test_what_was_written_is_read_by_its_identity_alone(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "new" / "cache", 1000)
    assert cache.read({"a": 1}) is None
    cache.write({"a": 1, "b": [2]}, b"result")
    assert cache.read({"b": [2], "a": 1}) == b"result"
    assert cache.read({"a": 1}) is None


def test_what_was_used_longest_ago_goes_first_and_other_files_stay(tmp_path: Path) -> None:
    other = tmp_path / "mine.txt"
    other.write_bytes(b"x" * 500)
    cache = FileCache(tmp_path, 400)
    for number in range(3):
        cache.write({"n": number}, b"x" * 68)  # 100 with its hash
        os.utime(cache._path({"n": number}), (number, number))
    assert cache.read({"n": 0}), "which makes 1 the oldest"
    cache.write({"n": 3}, b"x" * 168)
    assert [bool(cache.read({"n": number})) for number in range(4)] == [True, False, True, True]
    cache.write({"n": 4}, b"x" * 500)
    assert cache.read({"n": 4}) is None, "more than the limit"
    assert other.exists()


def test_a_damaged_or_unfinished_result_is_none(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    cache.write({}, b"result")
    path = cache._path({})
    whole = path.read_bytes()
    for damaged in (b"", whole[:10], whole[:-1], whole[:-1] + b"?", whole + b"?"):
        path.write_bytes(damaged)
        assert cache.read({}) is None
    # Of a process that was killed while it wrote; the next one that needs room clears it away.
    left = path.with_suffix(".123")
    left.write_bytes(b"x" * 990)
    cache.write({}, b"result")
    assert cache.read({}) == b"result"
    assert not left.exists()


def test_a_place_that_cannot_be_used_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FileCache(tmp_path / "file", 1000)
    cache.write({}, b"result")
    assert cache.read({}) is None
