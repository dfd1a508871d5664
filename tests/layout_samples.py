"""Rows in each layout that the world publishes, written anew, with the pairs or labelled answers that they mean."""

from typing import Any

from trainer_core.reading_options import AS_IT_IS, ReadingOptions
from trainer_core.row_rules import Row, text_of
from trainer_core.rows import RowChecker, RowReport

Q1, GOOD1, BAD1 = "ما لون البحر؟", "لون البحر أزرق.", "لا شأن لي به."
Q2, GOOD2, BAD2 = "كم يوما في الأسبوع؟", "في الأسبوع سبعة أيام.", "أيام كثيرة."
SYSTEM = "أجب بجملة واحدة."
FACTS = ((Q1, GOOD1, BAD1), (Q2, GOOD2, BAD2))


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def told(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def whole(question: str, answer: str) -> list[dict[str, str]]:
    return [said("user", question), said("assistant", answer)]


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def each(make: Any) -> list[Row]:
    return [make(*fact) for fact in FACTS]


SAMPLES: dict[str, dict[str, list[Row]]] = {
    "own": {
        "pairs": each(lambda q, g, b: {"prompt": q, "chosen": g, "rejected": b}),
        "labelled": [
            {"prompt": Q1, "completion": GOOD1, "label": True},
            {"prompt": Q2, "completion": BAD2, "label": False},
        ],
    },
    "conversations": {
        "implicit prompt": each(lambda q, g, b: {"chosen": whole(q, g), "rejected": whole(q, b)}),
        "repeated prompt": each(
            lambda q, g, b: {"prompt": [said("user", q)], "chosen": whole(q, g), "rejected": whole(q, b)}
        ),
    },
    "ultrafeedback": {
        "binarized": each(
            lambda q, g, b: {
                "prompt": q,
                "prompt_id": "7f",
                "chosen": whole(q, g),
                "rejected": whole(q, b),
                "messages": whole(q, g),
                "score_chosen": 8.0,
                "score_rejected": 2.5,
            }
        ),
        "mix": each(
            lambda q, g, b: {
                "dataset": "mix",
                "chosen": whole(q, g),
                "rejected": whole(q, b),
                "chosen_rating": 5.0,
                "rejected_rating": 1.0,
            }
        ),
    },
    "hh_text": {"dialogues": each(lambda q, g, b: {"chosen": dialogue(q, g), "rejected": dialogue(q, b)})},
    "orca": {
        "orca": each(lambda q, g, b: {"system": "", "question": q, "chosen": g, "rejected": b}),
        "distilabel": each(
            lambda q, g, b: {
                "system": SYSTEM,
                "input": q,
                "chosen": g,
                "rejected": b,
                "generations": [g, b],
                "rating": [9, 3],
            }
        ),
    },
    "alpaca": {
        "ranking": each(lambda q, g, b: {"instruction": q, "input": "", "chosen": g, "rejected": b, "history": []}),
        "kto": each(lambda q, g, _: {"instruction": q, "input": "", "output": g, "kto_tag": True}),
    },
    "sharegpt": {
        "ranking": each(
            lambda q, g, b: {"conversations": [told("human", q)], "chosen": told("gpt", g), "rejected": told("gpt", b)}
        ),
        "kto": each(lambda q, _, b: {"conversations": [told("human", q), told("gpt", b)], "kto_tag": False}),
        "messages": each(lambda q, g, _: {"messages": whole(q, g), "label": True}),
    },
    "swift": {
        "response": each(lambda q, g, b: {"messages": whole(q, g), "rejected_response": b}),
        "messages": each(lambda q, g, b: {"messages": whole(q, g), "rejected_messages": whole(q, b)}),
    },
    "hosted": {
        "dpo": each(
            lambda q, g, b: {
                "input": {"messages": [said("user", q)], "tools": []},
                "preferred_output": [said("assistant", g)],
                "non_preferred_output": [said("assistant", b)],
            }
        )
    },
    "pku": {
        "safe": [
            {"prompt": Q1, "response_0": GOOD1, "response_1": BAD1, "better_response_id": 0, "safer_response_id": 0},
            {"prompt": Q2, "response_0": BAD2, "response_1": GOOD2, "better_response_id": 1, "safer_response_id": 1},
        ]
    },
    "helpsteer_preference": {
        "second": [
            {"prompt": Q1, "response_1": GOOD1, "response_2": BAD1, "preference_strength": -2},
            {"prompt": Q2, "response_1": BAD2, "response_2": GOOD2, "preference_strength": 1},
        ],
        "third": [
            {"context": [said("user", Q1)], "response1": GOOD1, "response2": BAD1, "overall_preference": -3},
            {"context": [said("user", Q2)], "response1": BAD2, "response2": GOOD2, "overall_preference": 2},
        ],
    },
    "shp": {
        "replies": [
            {"history": Q1, "human_ref_A": GOOD1, "human_ref_B": BAD1, "labels": 1},
            {"history": Q2, "human_ref_A": BAD2, "human_ref_B": GOOD2, "labels": 0},
        ]
    },
    "generations": {
        "ratings": each(lambda q, g, b: {"instruction": q, "generations": [b, "…", g], "ratings": [1, 3, 5]}),
        "completions": each(
            lambda q, g, b: {
                "instruction": q,
                "completions": [{"response": g, "overall_score": 9.0}, {"response": b, "overall_score": 2.0}],
            }
        ),
    },
    "helpsteer": {
        "scores": [
            {"prompt": Q1, "response": GOOD1, "helpfulness": 4, "correctness": 4, "coherence": 4},
            {"prompt": Q2, "response": BAD2, "helpfulness": 0, "correctness": 1, "coherence": 3},
        ]
    },
    "scored": {
        "stars": [
            {"prompt": Q1, "completion": GOOD1, "label": 5},
            {"prompt": Q2, "completion": BAD2, "label": 1},
        ]
    },
    "two_answers": {
        "side by side": [
            {"prompt": Q1, "answer_1": GOOD1, "answer_2": BAD1, "preferred": "أ"},
            {"prompt": Q2, "answer_1": BAD2, "answer_2": GOOD2, "preferred": "2"},
        ]
    },
}

NEEDS_THRESHOLD = ("helpsteer", "scored")
"""Layouts that ask for one."""
THRESHOLD = 3
CASES = [(layout, name) for layout, samples in SAMPLES.items() for name in samples]
GOOD_OF = {question: good for question, good, _ in FACTS}


def options(**said: Any) -> ReadingOptions:
    return ReadingOptions.model_validate(said)


def option_of(layout: str) -> ReadingOptions:
    return options(threshold=THRESHOLD) if layout in NEEDS_THRESHOLD else AS_IT_IS


def read(rows: list[Any], how: ReadingOptions = AS_IT_IS) -> tuple[RowReport, list[Row]]:
    """What becomes of rows in memory."""
    found: list[Row] = []
    checker = RowChecker(lambda _part, row, _line: found.append(row), options=how)
    for line, row in enumerate(rows, start=1):
        checker.value("train", row, line)
    checker.finish()
    if checker.is_refused:
        raise checker.error()
    return checker.report, found


def means_the_facts(rows: list[Row]) -> None:
    """Each row says of its question what the samples say, and nothing is lost of it."""
    for row in rows:
        question = text_of(row["prompt"]).splitlines()[-1]
        if "chosen" in row:
            assert text_of(row["chosen"]) == GOOD_OF[question]
            assert text_of(row["rejected"]) != GOOD_OF[question]
        else:
            assert row["label"] == (text_of(row["completion"]) == GOOD_OF[question])
