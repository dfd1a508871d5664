"""Writes `old.xls`, a workbook of Excel 97, next to itself. Needs `xlwt`, which the tests do not need.

Run it with an environment of its own: `python -m venv /tmp/xlwt`, `/tmp/xlwt/bin/pip install xlwt==1.3.0`, and
`/tmp/xlwt/bin/python tests/files/make_old_workbook.py`.
"""

import datetime
from pathlib import Path

import xlwt  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

ROWS = [
    ("السؤال", "الإجابة الجيدة", "الإجابة السيئة", "رقم", "صح", "تاريخ"),
    ("ما عكس كبير؟", "صغير،\nيا صديقي", "لا أدري 😀", 3, True, datetime.date(2026, 1, 2)),
    ("ما عاصمة مصر؟", "القاهرة", "لا", 2.5, False, datetime.date(2026, 1, 3)),
]

book = xlwt.Workbook(encoding="utf-8")
sheet = book.add_sheet("ورقة1")
date = xlwt.easyxf(num_format_str="YYYY-MM-DD")
for number, cells in enumerate(ROWS):
    for place, cell in enumerate(cells):
        sheet.write(number, place, cell, *([date] if isinstance(cell, datetime.date) else []))
hidden = book.add_sheet("مخفية")
hidden.visibility = 1
for number, cell in enumerate(("a", "b")):
    hidden.write(number, 0, cell)
book.save(str(Path(__file__).with_name("old.xls")))
