"""Workbooks of every program: old, binary and open ones are read by value, and nothing in them is followed or run."""

import socket
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.reading import read, reason
from tests.workbooks import ods, xlsb, xlsx, zipped

OLD = Path(__file__).resolve().parents[1] / "files" / "old.xls"
ROWS: list[list[Any]] = [
    ["السؤال", "الإجابة الجيدة", "الإجابة السيئة", "رقم", "صح"],
    ["ما عكس كبير؟", "صغير،\nيا صديقي", "لا أدري 😀", 3, True],
    ["ما عاصمة مصر؟", "القاهرة", "لا", 2.5, False],
]
VALUES = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]
_URN = "urn:oasis:names:tc:opendocument:xmlns"


def parts(data: bytes) -> dict[str, bytes | str]:
    with zipfile.ZipFile(BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_a_workbook_of_excel_97_is_read() -> None:
    found = read(OLD.read_bytes())
    assert (found.kind, found.errors) == ("xls", [])
    assert found.values == [{**VALUES[0], "تاريخ": "2026-01-02"}, {**VALUES[1], "تاريخ": "2026-01-03"}]
    assert read(OLD.read_bytes(), sheet="مخفية").values == [{"a": "b"}]


def test_a_binary_workbook_is_read() -> None:
    found = read(xlsb(ROWS))
    assert (found.kind, found.errors, found.values) == ("xlsb", [], VALUES)


def cell(kind: str, text: str, **attributes: str) -> str:
    more = "".join(f' {name.replace("_", ":")}="{value}"' for name, value in attributes.items())
    inside = "".join(f"<text:p>{line}</text:p>" for line in text.split("\n"))
    return f'<table:table-cell office:value-type="{kind}"{more}>{inside}</table:table-cell>'


def open_document(rows: str) -> bytes:
    """A spreadsheet of OpenDocument with any cells, and the million empty rows that LibreOffice writes below them."""
    empty = '<table:table-row table:number-rows-repeated="1048573"><table:table-cell table:number-columns-repeated="1024"/>'
    content = (
        f'<office:document-content xmlns:office="{_URN}:office:1.0" xmlns:table="{_URN}:table:1.0" '
        f'xmlns:text="{_URN}:text:1.0" xmlns:xlink="http://www.w3.org/1999/xlink"><office:body><office:spreadsheet>'
        f'<table:table table:name="S">{rows}{empty}</table:table-row></table:table></office:spreadsheet></office:body>'
        "</office:document-content>"
    )
    return zipped({**parts(ods([["a"]])), "content.xml": content})


def test_an_open_document_is_read_by_value() -> None:
    header = "".join(cell("string", name) for name in ("q", "n", "ok", "day", "f", "w", "link"))
    link = '<text:a xlink:href="http://example.com/">word</text:a>'
    row = "".join(
        [
            cell("string", "ما لونه؟\nسطر ثان"),
            cell("float", "2,5", office_value="2.5"),
            cell("boolean", "TRUE", office_boolean_value="true").replace("boolean:value", "boolean-value"),
            cell("date", "2/1/26", office_date_value="2026-01-02").replace("date:value", "date-value"),
            cell("float", "2", office_value="2", table_formula="of:=1+1"),
            cell("string", "kept", table_formula="of:=WEBSERVICE(&quot;http://example.com/&quot;)"),
            cell("string", link),
        ]
    )
    repeated = f'<table:table-row table:number-rows-repeated="2">{row}</table:table-row>'
    found = read(open_document(f"<table:table-row>{header}</table:table-row>{repeated}"))
    values = {"q": "ما لونه؟\nسطر ثان", "n": 2.5, "ok": True, "day": "2026-01-02", "f": 2, "w": "kept", "link": "word"}
    assert (found.kind, found.errors, found.values) == ("ods", [], [values] * 2)


def test_links_to_other_workbooks_are_not_followed() -> None:
    """The value that Excel saw last is read; nobody is called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        place = f"http://127.0.0.1:{server.getsockname()[1]}/book.xlsx"
        relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        package = "http://schemas.openxmlformats.org/package/2006/relationships"
        cells = ["=[1]Sheet1!A1", f'=HYPERLINK("{place}","x")', f'=WEBSERVICE("{place}")']
        target = f'Type="{relation}/externalLinkPath" Target="{place}" TargetMode="External"'
        page = f'<connection id="1" type="4"><webPr url="{place}"/></connection>'
        book = zipped(
            {
                **parts(xlsx({"S": [["a", "b", "c"], cells]})),
                "xl/externalLinks/externalLink1.xml": '<externalLink><externalBook r:id="rId1"/></externalLink>',
                "xl/externalLinks/_rels/externalLink1.xml.rels": f'<Relationships xmlns="{package}">'
                f'<Relationship Id="rId1" {target}/></Relationships>',
                "xl/connections.xml": f"<connections>{page}</connections>",
            }
        )
        assert read(book).values == [dict.fromkeys("abc", "as computed")]
        with pytest.raises(TimeoutError):
            server.accept()


def test_formulas_that_were_never_computed_and_error_cells_are_empty() -> None:
    sheet = parts(xlsx({"S": [["a", "b", "c"], ["x", "=1+1", "y"]]}))
    text = str(sheet["xl/worksheets/sheet1.xml"], "utf-8")  # type: ignore[arg-type]
    never = text.replace('t="str"><f>1+1</f><v>as computed</v>', "><f>1+1</f><v></v>")
    error = text.replace('t="str"><f>1+1</f><v>as computed</v>', 't="e"><f>1/0</f><v>#DIV/0!</v>')
    assert never != text != error
    for changed in (never, error):
        assert read(zipped({**sheet, "xl/worksheets/sheet1.xml": changed})).values == [{"a": "x", "c": "y"}]


def test_names_of_parts_may_be_written_as_on_windows_or_stand_elsewhere() -> None:
    book = parts(xlsx({"S": ROWS}))
    windows = {name if name == "[Content_Types].xml" else name.replace("/", "\\"): data for name, data in book.items()}
    assert read(zipped(windows)).values == VALUES


def test_workbooks_that_cannot_be_read_say_what_to_do() -> None:
    secret = zipped({**parts(ods([["a"]])), "META-INF/manifest.xml": "<manifest:encryption-data/>"})
    assert reason(secret).code == "password"
    for kind, data, part in (
        ("XLSB", xlsb(ROWS), "xl/worksheets/sheet1.bin"),
        ("XLSX", xlsx({"S": ROWS}), "xl/workbook.xml"),
    ):
        found = reason(zipped({**parts(data), part: b"<"}))
        assert (found.code, found.params["kind"]) == ("not_valid", kind)
        assert len(found.reason.splitlines()) == 1
    found = reason(OLD.read_bytes()[:3000])
    assert (found.code, found.params["kind"]) == ("not_valid", "XLS")
    assert found.reason.endswith("save it as XLSX or CSV")


def test_a_document_with_a_workbook_inside_is_no_workbook() -> None:
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    document = {
        "[Content_Types].xml": f'<Types><Default Extension="xlsx" ContentType="{kind}"/></Types>',
        "word/document.xml": "x",
        "word/embeddings/a.xlsx": xlsx({"S": ROWS}),
    }
    found = reason(zipped(document))
    assert (found.code, found.params["kind"]) == ("not_rows", "docx")
