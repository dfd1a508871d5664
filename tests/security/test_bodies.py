"""Limits on what is sent and on what it expands to: bodies, headers, ranges, bombs of each kind of file."""

import gzip
import io
import json
import random
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from jobs.settings import Settings
from tests.conftest import DATA
from tests.live import Live, live, serving, settings
from tests.workbooks import xlsx, zipped
from trainer_core.errors import DataInvalid
from trainer_core.reading import MAX_LINE_BYTES

__all__ = ["live", "settings"]

MIB = 2**20
ROOT = Path(__file__).resolve().parents[2]
# Reads a file as an upload does, and tells what became of it, and the most memory that this process and its children held.
CHECK = """
import json, re, resource, sys
from pathlib import Path
from trainer_core.errors import DataInvalid
from trainer_core.rows import check_file
try:
    said = {"rows": check_file(Path(sys.argv[1])).train_rows}
except DataInvalid as error:
    said = {"refused": error.message}
# What getrusage tells of a process itself begins with what its parent held.
own = int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({**said, "own_mib": own // 1024, "others_mib": others // 1024}))
"""


def check(path: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", CHECK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def refused(path: Path, reason: str) -> None:
    """Refused for the reason, in memory that does not grow with what the file expands to."""
    found = check(path)
    assert reason in found["refused"], found
    assert found["own_mib"] < 300, found
    assert found["others_mib"] < 700, found


# -- what is sent


def talk(live: Live, request: bytes, pieces: int = 0, piece: bytes = b"") -> tuple[bytes, int]:
    """Sends a request and then pieces until the service says enough. Returns its answer and the pieces that it took."""
    address = live.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=240) as connection:
        connection.sendall(request)
        taken, answer = 0, b""
        try:
            while taken < pieces:
                connection.sendall(piece)
                taken += 1
            while data := connection.recv(2**16):
                answer += data
        except (BrokenPipeError, ConnectionResetError):
            pass
    return answer, taken


def chunked(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode()


PIECE = b"10000\r\n" + b"x" * 2**16 + b"\r\n"


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/validate", f"/v1/jobs/{'0' * 32}/compare", "/v1/keys", "/nothing"])
def test_a_chunked_body_without_a_length_is_refused_at_the_limit(live: Live, path: str) -> None:
    pieces = live.settings.max_body_bytes // 2**16 + 1
    answer, _ = talk(live, chunked(path), pieces, PIECE)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:300]
    assert b'"code":"too_large"' in answer
    # Who goes on sending talks to nobody: a gibibyte is not taken.
    _, taken = talk(live, chunked(path), 16_384, PIECE)
    assert taken < 2048


def test_a_chunked_upload_is_cut_off_at_its_limit(tmp_path: Path) -> None:
    few = Settings(data_dir=tmp_path / "data", redis_url=SecretStr("redis://127.0.0.1:1/0"), max_upload_bytes=4 * MIB)
    few.make_directories()
    row = (DATA / "pairs_train.jsonl").read_bytes()[: 2**16].rpartition(b"\n")[0] + b"\n"
    piece = b"%x\r\n" % len(row) + row + b"\r\n"
    with serving(few) as live:
        _, taken = talk(live, chunked("/v1/datasets"), 16_384, piece)
        assert taken < 2048
        assert not list(few.datasets_dir.iterdir())
        assert httpx.get(f"{live.url}/v1/datasets").json()["datasets"] == []


@pytest.mark.parametrize(
    "headers",
    [b"X-Long: " + b"x" * MIB, b"Cookie: " + b"a=b; " * 200_000, b"\r\n".join(b"X-%d: y" % i for i in range(50_000))],
)
def test_headers_without_end_are_refused(live: Live, headers: bytes) -> None:
    answer, _ = talk(live, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", 1, headers + b"\r\n\r\n")
    assert not answer or answer.startswith(b"HTTP/1.1 400"), answer[:300]
    assert httpx.get(f"{live.url}/healthz").json() == {"status": "ok"}


def test_a_form_with_endless_fields_is_never_read(live: Live) -> None:
    head = b"POST /v1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    answer, taken = talk(live, head + b"Content-Length: 1073741824\r\n\r\n", 16_384, b"x" * 2**16)
    assert taken < 2048
    assert not answer or answer.startswith(b"HTTP/1.1 422"), answer[:300]


# -- what it expands to


def test_bombs_of_gzip_are_refused_in_little_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    # 10 GiB of blanks, in members of 64 MiB.
    member = gzip.compress(b" " * 64 * MIB)
    bomb.write_bytes(member * 160)
    refused(bomb, "expands to more than 200 times")
    bomb.write_bytes(gzip.compress(gzip.compress(member)))
    refused(bomb, "gzip inside gzip")
    bomb.write_bytes(gzip.compress((DATA / "pairs_train.jsonl").read_bytes())[:-9])
    refused(bomb, "truncated")


@pytest.mark.parametrize(
    ("begin", "piece", "mib"),
    [
        (b'[{"prompt": "', b"abcdefgh" * 8192, 400),
        (b'{"train": [], "other": "', b"abcdefgh" * 8192, 400),
        (b'{"prompt": "', b"abcdefgh" * 8192, 400),
        (b"[{", b",".join(b'"k%d": {}' % i for i in range(8192)) + b",", 40),
        (b'{"train": [[', b"[],[{}]," * 8192, 40),
    ],
)
def test_a_row_without_end_is_refused_in_little_memory(tmp_path: Path, begin: bytes, piece: bytes, mib: int) -> None:
    path = tmp_path / "rows.json"
    with gzip.open(path, "wb", 1) as file:
        file.write(begin)
        for _ in range(mib * MIB // len(piece)):
            file.write(piece)
    refused(path, f"{MAX_LINE_BYTES:,} bytes")


def test_many_small_rows_of_one_document_have_no_limit(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "x" * 5000, "rejected": "y"} for i in range(2 * MAX_LINE_BYTES // 5000)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": rows, "note": "z" * MIB, "validation": rows[:5]}))
    assert check(path)["rows"] == len(rows)


def test_bombs_of_parquet_are_refused_in_little_memory(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path, big = tmp_path / "rows.parquet", "a" * 10 * MIB
    # One word of a dictionary in 100,000 rows: a terabyte.
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array([big]))
    table = pyarrow.table({"prompt": words, "chosen": ["x"] * 100_000, "rejected": ["y"] * 100_000})
    parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 10_000
    refused(path, "line 1: the row is longer than")
    # Rows that are short enough, and together too much.
    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array([big[:MIB]]))
    parquet.write_table(table.set_column(0, "prompt", words), path, compression="zstd")
    refused(path, "expands to more than 200 times")
    # A page of 300 MiB, in a file whose index says that it is small.
    one = pyarrow.table({"prompt": pyarrow.array(["a" * 300 * MIB]), "chosen": ["x"], "rejected": ["y"]})
    parquet.write_table(one, path, compression="zstd", use_dictionary=False, write_statistics=False)
    refused(path, "expands to more than 200 times")
    path.write_bytes(with_small_sizes(path.read_bytes(), 300 * MIB))
    assert parquet.ParquetFile(path).metadata.row_group(0).total_byte_size < MIB
    refused(path, "would take too much memory")


def test_bombs_of_other_kinds_are_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    # Blocks of four bytes for 128 KiB each: 4 GiB in one frame.
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00\x58" + b"\x02\x00\x10 " * 2**15)
    refused(path, "expands to more than 200 times")
    cells = [["prompt", "chosen", "rejected"], ["س", "نعم", "لا"]]
    book = xlsx({"S": cells})
    with zipfile.ZipFile(io.BytesIO(book)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    name = "xl/worksheets/sheet1.xml"
    # One cell in the last place of the sheet, and 17 thousand million empty ones before it.
    far = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    path.write_bytes(zipped({**parts, name: parts[name].replace(b"</sheetData>", far)}))
    refused(path, "would take too much memory")
    path.write_bytes(zipped({**parts, name: parts[name] + b" " * 70 * MIB}))
    refused(path, "expands to more than 200 times")
    with gzip.open(path, "wb", 1) as packed:
        packed.write(b'{"prompt": {"0": 1')
        for number in range(12):
            packed.write(b"".join(b',"%d":[[],[],[],{}]' % i for i in range(number * 10**5, (number + 1) * 10**5)))
        packed.write(b"}}")
    refused(path, "would take too much memory")


def test_a_table_with_an_open_quotation_mark_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        file.write(b'prompt,chosen,rejected\n"')
        for _ in range(200):
            file.write(b"a,b,c\n" * (MIB // 6))
    refused(path, f"{MAX_LINE_BYTES:,} bytes")


def with_small_sizes(data: bytes, size: int) -> bytes:
    """A Parquet file whose index tells small sizes in the place of those near `size`; the pages are as they were."""
    length = int.from_bytes(data[-8:-4], "little")
    index = bytearray(data[-8 - length : -8])
    for at in range(len(index) - 5):
        value, shift, end = 0, 0, at
        while end < at + 5 and (end == at or index[end - 1] & 0x80):
            value |= (index[end] & 0x7F) << shift
            shift, end = shift + 7, end + 1
        # Zigzag varints of five bytes: the column's size and the group's.
        if end == at + 5 and 2 * size <= value < 2 * size + 4096:
            index[at : at + 5] = b"\xa0\x80\x80\x80\x00"
    return data[: -8 - length] + bytes(index) + data[-8:]


def test_a_parquet_file_with_a_broken_index_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    row = {"prompt": "س", "chosen": "نعم", "rejected": "لا"}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 50), path)
    whole = path.read_bytes()
    noise = random.Random(7)
    length = int.from_bytes(whole[-8:-4], "little")
    broken = [whole[:-8] + (2**31).to_bytes(4, "little") + b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 200 + b"PAR1"]
    for _ in range(2):
        index = bytearray(whole[-8 - length : -8])
        for _ in range(20):
            index[noise.randrange(length)] = noise.randrange(256)
        broken.append(whole[: -8 - length] + bytes(index) + whole[-8:])
    for data in broken:
        path.write_bytes(data)
        found = check(path)
        assert "not valid Parquet" in found.get("refused", "") or found.get("rows") == 50, found
        assert found["own_mib"] < 300
    too_wide = pyarrow.table({**{name: [value] for name, value in row.items()}, **{f"c{i}": [1] for i in range(2000)}})
    parquet.write_table(too_wide, path)
    refused(path, "more than 1,000 columns")


def test_what_reads_parquet_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gets the variables that it needs to start, and no others."""
    from trainer_core.reading import whole_files
    from trainer_core.rows import check_file

    seen = tmp_path / "seen"
    program = tmp_path / "program.py"
    program.write_text(f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))")
    monkeypatch.setattr(whole_files, "_PROGRAM", program)
    monkeypatch.setenv("TAFDIL_ADMIN_KEY", "canary-of-the-environment")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataInvalid):
        check_file(tmp_path / "rows.parquet")
    assert "PATH" in seen.read_text()
    assert "canary-of-the-environment" not in seen.read_text()
