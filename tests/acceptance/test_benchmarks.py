"""The benchmarks run: what they measure is for people, not for tests."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_check_runs_where_there_is_no_gpu(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text("# GPUs\n\n<!-- the last run -->\n\nold\n", encoding="utf-8")
    arguments = ["--shape", "tiny", "--methods", "kto", "cpo", "--steps", "4", "--write", str(page)]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    written = page.read_text(encoding="utf-8")
    assert written.startswith("# GPUs")
    assert "old" not in written
    assert "| KTO | " in written
    assert "| CPO | " in written
