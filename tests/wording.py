"""Words that the product uses, and words that it does not. `docs/glossary.md` explains the first."""

import re

# What stands in Latin letters in Arabic text: formats, products, methods, units, and English terms beside their Arabic.
LATIN = re.compile(
    r"(?<![A-Za-z])(?:tafdil keys create|7-Zip|AdamW|API|Avro|Arrow|CPO|CPU|CSV|DPO|DoRA|Excel|GPU|GiB|Git LFS|HDF5|HTTP|IPO"
    r"|JSONL?|KL|KTO|KiB|LoRA|MiB|NLL|NumPy|ORC|PDF|Parquet|Python|RAR|RTF|SQLite|SimPO|TRL|TSV|TiB|URL|UTF-8|UTF-16|Unicode|Word|XLSX|XML"
    r"|YAML|alpha|beta|bf16|bitsandbytes|fork|fp16|logits|pickle|rsLoRA|tar|temperature|tensors|tokens)(?![A-Za-z])"
)

# Translated-sounding English, each with what a native writer says.
_NOUN_OF_TRAINING = (
    r"(?! (?:and|argument|attempt|batch|code|configuration|data|dataset|field|file|framework|job|library|loop|loss|part|pass"
    r"|process|prompt|row|run|script|server|set|setting|share|signal|split|step|thread|token|worker)s?\b)"
)
ENGLISH_FAULTS = {
    r"\btold\b|\btells?\b(?! (?:you|us)\b|: )(?!.*\bapart\b)": "reports, says, stores, returns",
    r"\bgo(?:es)? on\b|\bgoing on\b": "continues, resumes",
    rf"\btrainings\b|\b(?:a|another|each|every|one) training\b{_NOUN_OF_TRAINING}": "run",
    r"\bso (?:long|many)\b": "a duration, a count",
    r"\b(?:is|are|be) taken of\b|\bas a place of\b": "count towards, is computed on",
    r"\bin the place of\b": "instead of",
    r"\b(?:did not do|does not do|do) its part\b": "unavailable",
    r"\bhere one can\b": "allowed: …",
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!(?:longer|more|less|fewer|later|earlier|one)\b|\w+er than\b)": "is not a",
    r"\bno fault of\b": "not caused by",
    r"\b[Nn]obody takes\b|\bnothing (?:comes )?from elsewhere\b|\bIs it well\b|\btake .{1,20} home\b": "plain words",
}

# English words as expressions, each with stems of which the Arabic has one.
ARABIC_OF = {
    r"adapters?": ("محول",),
    r"answers?": ("إجاب", "أجاب", "جيب"),
    r"attempts?": ("محاول",),
    r"better answer": ("أفضل",),
    r"chat template": ("قالب",),
    r"checkpoints?": ("نقطة استئناف", "نقاط استئناف", "نقاط الاستئناف", "نقطتي استئناف"),
    r"compar\w+": ("مقارن", "قارن"),
    r"datasets?": ("مجموعة", "مجموعات", "مجموعتا"),
    r"device": ("جهاز",),
    r"effect": ("أثر",),
    r"epochs?": ("دور",),
    r"evaluat\w+": ("تقييم", "قيم"),
    r"events?": ("حدث", "أحداث"),
    r"GPU": ("GPU",),
    r"held[- ]back": ("محجوز",),
    r"jobs?": ("مهم", "مهام"),
    r"keys?": ("مفتاح", "مفاتيح"),
    r"KL": ("KL",),
    r"labels?": ("وسم", "وسوم"),
    r"learning rates?": ("معدل", "معدلات"),
    r"LoRA": ("LoRA",),
    r"loss": ("خسار",),
    r"margins?": ("هامش", "هوامش"),
    r"metrics?": ("مقياس", "مقاييس", "قياس"),
    r"mix": ("خليط",),
    r"pairs?": ("زوج", "أزواج"),
    r"prompts?": ("سؤال", "أسئلة"),
    r"queued?": ("طابور",),
    r"reference": ("مرجع",),
    r"report": ("تقرير",),
    r"resumed?": ("استأنف", "استئناف", "استؤنف"),
    r"rewards?": ("مكافأ", "مكافآ"),
    r"rows?": ("صف",),
    r"seed": ("بذرة",),
    r"spec": ("مواصف",),
    r"steps?": ("خطو",),
    r"tokens?": ("رمز", "رموز"),
    r"validation": ("تحقق",),
    r"warnings?": ("تحذير",),
    r"workers?": ("عامل",),
    r"worse answer": ("أسوأ",),
}
# A prompt that asks nothing, and what a language calls otherwise.
NOT_THE_WORD = r"system prompts?|worker is missing"

# Arabic that nobody would write, or another word for a thing that has one, each with what stands there instead.
ARABIC_FAULTS = {
    r"جيسون|باركيه|إكسل|وورد|أفرو|بايثون|يامل|بي دي إف|إكس إم إل|لورا": "Latin letters: JSON, Parquet, Excel, LoRA",
    r"المعالج الرسومي|معالج رسومي|كرت الشاشة|بطاقة الرسوم": "GPU",
    r"نحو \w+تان\b|بعد \w+تان\b": "the genitive: ثانيتين",
    r"\bأنشئ\b(?! )|يجري إلغاؤه\b|سيحفظ ثم|\bسيتوقف مؤقت": "the feminine of مهمة: أُنشئت، إلغاؤها، ستُحفظ، ستتوقف",
    r"\d+ ملفا\b": "ملف after a hundred",
    r"ارفع الحد الآمن": "ألغِ الحد",
    r"[كمجت]\.ب": "KiB, MiB, GiB, TiB",
    r"[\u0660-\u0669\u066a-\u066c]": "Latin digits and %",
    r"القيم المبدئية|القيمة المبدئية": "الافتراضية",
    r"\bتوكن|\bالتوكن": "رمز",
    r"طابور الانتظار|قائمة الانتظار": "طابور",
    r"نقطة تفتيش|نقطة حفظ|نقاط الحفظ|نقطة تحقق": "نقطة استئناف",
    r"معدل التعليم|نسبة التعلم|معدل التعلّم الآلي": "معدل التعلم",
    r"\bوظيفة|\bوظائف": "مهمة",
    r"\bحقبة|\bعصر تدريب": "دورة",
    r"\bموجه\b|\bالموجه\b|\bمطالبة|\bالمطالبة": "سؤال",
    r"دالة الفقد|\bالفقدان": "خسارة",
    r"\bمهايئ|\bالمهايئ|منخفضة الرتبة|منخفض الرتبة": "محوّل LoRA",
    r"كولباك": "تباعد KL",
    r"تم (?:ال)?(?:إنشاء|حذف|رفع|حفظ|تحميل|إلغاء|إرسال)": "a verb in the passive: أُنشئ، حُذف",
    r"من قبل ال": "an active sentence, or بـ",
}
