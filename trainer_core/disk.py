"""Whether a write failed because the disk was full. Torch-free."""

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch, safetensors and SQLite hide the system's error in their own messages.
_TEXTS = ("No space left", "File too large", "quota exceeded", "database or disk is full")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _TEXTS)
