"""Whether writing failed because there was no room. Torch-free."""

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch, safetensors and SQLite hide the system's error in messages of their own.
_TEXTS = ("No space left", "File too large", "quota exceeded", "database or disk is full")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of writing says that there is no room left."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _TEXTS)
