"""Small workbooks and zips, written part by part, as spreadsheets save them."""

import io
import struct
import zipfile
from typing import Any
from xml.sax.saxutils import escape

_TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def zipped(files: dict[str, bytes | str]) -> bytes:
    """A zip of files by their names."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return data.getvalue()


def _cell(place: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, (int, float)):
        return f'<c r="{place}"><v>{value}</v></c>'
    if value.startswith("="):
        return f'<c r="{place}" t="str"><f>{escape(value[1:])}</f><v>as computed</v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'


def _sheet(rows: list[list[Any]]) -> str:
    written = ""
    for number, cells in enumerate(rows, start=1):
        inside = "".join(_cell(f"{chr(65 + place)}{number}", value) for place, value in enumerate(cells))
        written += f'<row r="{number}">{inside}</row>' if inside else ""
    return f'<worksheet xmlns="{_MAIN}"><sheetData>{written}</sheetData></worksheet>'


def xlsx(sheets: dict[str, list[list[Any]]], hidden: tuple[str, ...] = ()) -> bytes:
    """A workbook of sheets by their names, each a list of rows of cells. Text that begins with `=` is a formula."""
    names = list(sheets)
    numbers = range(1, len(names) + 1)
    state = {name: ' state="hidden"' if name in hidden else "" for name in names}
    listed = "".join(f'<sheet name="{names[i - 1]}" sheetId="{i}"{state[names[i - 1]]} r:id="rId{i}"/>' for i in numbers)
    links = "".join(f'<Relationship Id="rId{i}" Type="{_REL}/worksheet" Target="worksheets/sheet{i}.xml"/>' for i in numbers)
    types = "".join(
        f'<Override PartName="/xl/worksheets/sheet{i}.xml" ContentType="{_TYPES}.worksheet+xml"/>' for i in numbers
    )
    package = "http://schemas.openxmlformats.org/package/2006"
    return zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
            f'ContentType="{_TYPES}.sheet.main+xml"/>{types}</Types>',
            "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" '
            f'Type="{_REL}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_REL}"><sheets>{listed}</sheets></workbook>',
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">{links}</Relationships>',
            **{f"xl/worksheets/sheet{i}.xml": _sheet(sheets[names[i - 1]]) for i in numbers},
        }
    )


def ods(rows: list[list[str]]) -> bytes:
    """A spreadsheet of OpenDocument with one sheet of text."""
    urn = "urn:oasis:names:tc:opendocument:xmlns"
    cells = [
        "".join(f'<table:table-cell office:value-type="string"><text:p>{escape(c)}</text:p></table:table-cell>' for c in row)
        for row in rows
    ]
    inside = "".join(f"<table:table-row>{row}</table:table-row>" for row in cells)
    return zipped(
        {
            "mimetype": "application/vnd.oasis.opendocument.spreadsheet",
            "META-INF/manifest.xml": f'<manifest:manifest xmlns:manifest="{urn}:manifest:1.0"/>',
            "content.xml": f'<office:document-content xmlns:office="{urn}:office:1.0" xmlns:table="{urn}:table:1.0" '
            f'xmlns:text="{urn}:text:1.0"><office:body><office:spreadsheet><table:table table:name="S">{inside}'
            "</table:table></office:spreadsheet></office:body></office:document-content>",
        }
    )


def _record(kind: int, data: bytes = b"") -> bytes:
    """A record of a binary workbook: kind and length, seven bits per byte."""
    head = bytes([kind & 0x7F | 0x80, kind >> 7]) if kind > 0x7F else bytes([kind])
    size = len(data)
    length = b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return head + length + bytes([size]) + data


def _wide(text: str) -> bytes:
    data = text.encode("utf-16-le")
    return struct.pack("<I", len(data) // 2) + data


def xlsb(rows: list[list[Any]], name: str = "S") -> bytes:
    """A binary workbook of Excel with one sheet (MS-XLSB: workbook, sheet, row, and cells of text, numbers and booleans)."""
    sheet = _record(129) + _record(148, struct.pack("<4I", 0, len(rows) - 1, 0, len(rows[0]) - 1)) + _record(145)
    for number, cells in enumerate(rows):
        sheet += _record(0, struct.pack("<II9x", number, 0))
        for place, value in enumerate(cells):
            at = struct.pack("<II", place, 0)
            if isinstance(value, bool):
                sheet += _record(4, at + bytes([value]))
            elif isinstance(value, str):
                sheet += _record(6, at + _wide(value))
            elif value is not None:
                sheet += _record(5, at + struct.pack("<d", value))
    sheet += _record(146) + _record(130)
    about = _record(156, struct.pack("<II", 0, 1) + _wide("rId1") + _wide(name))
    book = _record(131) + _record(143) + about + _record(144) + _record(132)
    package = "http://schemas.openxmlformats.org/package/2006"
    return zipped(
        {
            "[Content_Types].xml": f'<Types xmlns="{package}/content-types"/>',
            "xl/workbook.bin": book,
            "xl/_rels/workbook.bin.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" '
            f'Type="{_REL}/worksheet" Target="worksheets/sheet1.bin"/></Relationships>',
            "xl/worksheets/sheet1.bin": sheet,
        }
    )
