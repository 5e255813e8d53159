"""What is said before a measurement: how many documents fit, at which other lengths, and what budgets come to."""

from __future__ import annotations

import re

import pytest
from tiny_files import save_tiny, tiny_tokenizer

import forward_influence as fi
from forward_influence.data.cutting import prepare
from forward_influence.data.document import make_document
from forward_influence.measurement.briefing import budgets_in_words, documents_in_words, fitting
from forward_influence.measurement.request import Request

LENGTHS = (500, 900, 300, 700, 100)


def prepared(request: Request, most: int | None = None):
    documents = [
        make_document(f"d{i}", "".join(chr(97 + (i + j * j) % 10) for j in range(n))) for i, n in enumerate(LENGTHS)
    ]
    return prepare(documents, tiny_tokenizer(), request.context, request.continuation, request.segments, most)


def request(**changed) -> Request:
    return Request(**{"selectors": ("recent", "random"), "context": 200, "continuation": 400, **changed})


def test_other_lengths_fit_as_many_documents_as_they_say():
    asked = request()
    found = fitting(asked, prepared(asked), [2, 3, 4])
    assert [other.documents for other in found] == [3, 4]  # two fit as it is
    for other in found:
        again = request(context=other.context, continuation=other.continuation)
        assert len(prepared(again).documents) == other.documents
        assert other.context % 32 == other.continuation % 32 == 0
        longer = request(context=other.context + 32, continuation=other.continuation + 64)
        assert len(prepared(longer).documents) < other.documents


def test_no_lengths_are_offered_that_leave_nothing_to_choose():
    asked = request(budgets=("100",))
    assert fitting(asked, prepared(asked), [5]) == []  # 32 + 64 tokens would fit all


def test_lengths_that_nobody_has_read_are_not_guessed():
    asked = request()
    assert fitting(asked, prepared(asked, most=1), [3]) == []


def test_documents_in_words():
    asked = request()
    found = prepared(asked)
    assert documents_in_words(asked, found, fitting(asked, found, [3, 5])) == (
        "2 of 5 are long enough for 200 + 400 tokens; 3 would be for 160 + 320"
    )
    assert documents_in_words(asked, prepared(asked, most=1), []) == (
        "1 of 2 are long enough for 200 + 400 tokens; 3 more are left out"
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budgets": ("0.2",)}, ["0.2: drops 40 of 132 candidates per layer and head (20% of the 200 context tokens)"]),
        ({"budgets": ("30",)}, ["30: drops 30 of 132 candidates per layer and head (15% of the 200 context tokens)"]),
        (
            {"budgets": ("0.6",), "mode": "keep"},
            ["0.6: keeps 120 of 200 context tokens per layer and head, the 68 protected ones included"],
        ),
        (
            {"selectors": (), "compressors": ("snapkv", "h2o"), "budgets": ("0.5",)},
            ["0.5: holds 100 of 200 context tokens per layer and head (snapkv, h2o)"],
        ),
    ],
)
def test_budgets_in_words(changed, said):
    assert budgets_in_words(request(**changed)) == said


def test_budgets_in_words_are_what_a_run_does(tmp_path):
    """The number that is said is the number that is selected."""

    model = fi.load_model(str(save_tiny(tmp_path / "model")))
    asked = request(context=120, continuation=8, budgets=("0.3",))
    documents = prepare(
        [make_document("d", "the tide turns twice a day " * 40)], model.tokenizer, context=120, continuation=8
    ).documents
    run = fi.measure(model, documents, asked, tmp_path / "run")
    frame = run.curves().query("kind == 'condition'")
    [said] = budgets_in_words(asked)
    assert re.match(r"0.3: drops (\d+) of", said)[1] == "36"
    assert {int(count) for counts in frame["selected"] for count in counts.flat} == {36}
