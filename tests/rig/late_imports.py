"""The real training, which notes beside its log what it imported by itself."""

import json
import sys
from pathlib import Path

from worker import child
from worker.child import preload

__all__ = ["preload"]


def main() -> int:
    before = set(sys.modules)
    code = child.main()
    (Path(sys.argv[1]) / "imported.json").write_text(json.dumps(sorted(set(sys.modules) - before)), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
