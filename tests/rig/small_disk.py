"""A training of `test_resume.py` on a small file system of its own: `python -m tests.rig.small_disk FOLDER BYTES`.

Prints the error of the full disk, and keeps in `FOLDER/kept` what was on the disk, which is gone with the process.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fakes import RecordingObserver
from tests.integration.test_resume import settings
from trainer_core import PreferenceTrainer
from trainer_core.errors import DiskFull

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000


def mount_own(place: Path, size: int) -> None:
    """Mounts a file system that this process alone sees, without rights of the machine's."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS | _NEW_USERS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)


def main() -> None:
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    mount_own(folder / "out", size)
    try:
        PreferenceTrainer(settings("ipo", folder), observer=RecordingObserver()).train()
    except DiskFull as error:
        print(error)
    shutil.copytree(folder / "out", folder / "kept")


if __name__ == "__main__":
    main()
