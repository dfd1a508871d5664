"""What a file of preference rows contains, and what a model could learn from it instead of the preference.

`report_of_file(path)` and `report_of_rows(rows)` return JSON; its sentences are codes of `trainer_core.wording`. Offline,
without torch and without a model; with a `Vocabulary` also in tokens. The page `docs/arabic_data.md` explains every figure.
"""

from trainer_core.data_report.report import VERSION, Collector, report_of_file, report_of_rows, summary_of_rows
from trainer_core.data_report.tokens import Vocabulary, vocabulary_in

__all__ = ["VERSION", "Collector", "Vocabulary", "report_of_file", "report_of_rows", "summary_of_rows", "vocabulary_in"]
