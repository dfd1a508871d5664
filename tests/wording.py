"""Words that the product uses, and words that it does not: what `docs/glossary.md` and `tests/unit/test_glossary.py` hold to."""

import re

# What stands in Latin letters in Arabic text: names of formats, products, methods and units, and English terms beside their Arabic.
LATIN = re.compile(
    r"(?<![A-Za-z])(?:tafdil keys create|7-Zip|AdamW|API|Avro|Arrow|CPO|CPU|CSV|DPO|DoRA|Excel|GPU|GiB|Git LFS|HDF5|HTTP|IPO|JSONL?"
    r"|KL|KTO|KiB|LoRA|MiB|NLL|NumPy|ORC|PDF|Parquet|Python|RAR|RTF|SQLite|SimPO|TRL|TSV|TiB|URL|UTF-8|UTF-16|Unicode|Word|XLSX|XML"
    r"|YAML|alpha|beta|bf16|bitsandbytes|fork|fp16|logits|pickle|rsLoRA|tar|temperature|tensors|tokens)(?![A-Za-z])"
)

# Translated-sounding English, each with what a native writer says.
_NOUN_OF_TRAINING = (
    r"(?! (?:and|argument|attempt|code|configuration|data|dataset|field|file|framework|job|library|loop|loss|part|pass|process|prompt"
    r"|row|run|script|server|set|setting|share|split|step|thread|token|worker)s?\b)"
)
ENGLISH_FAULTS = {
    r"\btold\b|\btells?\b": "reports, says, stores, returns",
    r"\bgo(?:es)? on\b|\bgoing on\b": "continues, resumes",
    rf"\btrainings\b|\b(?:a|another|each|every|one|this|that|no) training\b{_NOUN_OF_TRAINING}": "run",
    r"\bso (?:long|many)\b": "a duration, a count",
    r"\b(?:is|are|be) taken of\b|\bas a place of\b": "count towards, is computed on",
    r"\bin the place of\b": "instead of",
    r"\b(?:did not do|does not do|do) its part\b": "unavailable",
    r"\bhere one can\b": "allowed: …",
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|later\b|earlier\b|one\b|\w+er than\b)": "is not a",
    r"\bno fault of\b": "not caused by",
    r"\b[Nn]obody takes\b|\bnothing (?:comes )?from elsewhere\b|\bIs it well\b|\bkept off\b|\b[Ll]ook back\b|\btake .{1,20} home\b": "plain words",
}
