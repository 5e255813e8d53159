"""Tasks: the same items every time, answers that can be found, lengths that are kept."""

from __future__ import annotations

import hashlib

import pytest
from tiny_tokenizer import byte_tokenizer

from forward_influence.data.tasks import TASKS, parse_task, words
from forward_influence.data.tasks.filler import sentences, woven
from forward_influence.data.tasks.scoring import found, number_matches, share_found
from forward_influence.errors import UsageError
from forward_influence.evaluation.prompts import counter, make_prompt
from forward_influence.utils.tokenization import encode, wants_chat

TOKENS = counter(byte_tokenizer())
LENGTH = 3000  # bytes here
VARIANTS = [
    *(name for name, task in TASKS.items() if task.fills),
    "needle:kind=number",
    "needle:depth=0",
    "needle:depth=1",
    "needle-multikey:keys=6,kind=number,digits=3",
    "variables:hops=3,chains=1",
    "variables:hops=0",
    "facts:people=9",
    "reasoning:problem=aiw",
    "reasoning-cot:problem=family_relationships",
]


def make(spec: str, index: int = 0, length: int = LENGTH, seed: int = 0):
    if spec.startswith("reasoning"):
        pytest.importorskip("reasoning_gym")
    return parse_task(spec).item(index, length, TOKENS, seed)


@pytest.mark.parametrize("spec", VARIANTS)
def test_items_are_deterministic_and_differ_by_number_and_seed(spec: str) -> None:
    assert make(spec) == make(spec)
    assert make(spec, 1).context != make(spec).context
    assert make(spec, seed=1).context != make(spec).context


def test_an_item_is_the_same_on_every_machine() -> None:
    """Pinned: items of a published table can be made again."""
    digest = hashlib.sha256(make("needle").context.encode()).hexdigest()
    assert digest[:16] == PINNED


@pytest.mark.parametrize("spec", VARIANTS)
@pytest.mark.parametrize("index", range(4))
def test_length_is_kept_and_nearly_reached(spec: str, index: int) -> None:
    item = make(spec, index)
    tokens = TOKENS(f"{item.context}\n\n{item.question}")
    assert LENGTH - 150 < tokens <= LENGTH


@pytest.mark.parametrize("spec", VARIANTS)
@pytest.mark.parametrize("index", range(4))
def test_the_evidence_is_in_the_context_and_the_question_is_not(spec: str, index: int) -> None:
    item = make(spec, index)
    assert all(item.context.count(sentence) == 1 for sentence in item.evidence)
    assert item.question not in item.context
    assert item.evidence


@pytest.mark.parametrize("spec", [v for v in VARIANTS if not v.startswith("reasoning")])
@pytest.mark.parametrize("index", range(4))
def test_the_evidence_holds_the_answer_and_the_question_does_not_give_it_away(spec: str, index: int) -> None:
    item = make(spec, index)
    evidence = " ".join(item.evidence)
    for answer in item.answers:
        assert found(evidence, answer)
        assert not found(item.question + " " + item.answer_prefix, answer)
    assert parse_task(spec).score(item, " and ".join(item.answers) + ".") == 1
    assert parse_task(spec).score(item, "I do not know") == 0


def test_only_the_asked_key_has_the_answer() -> None:
    for index in range(20):
        item = make("needle-multikey:keys=8,kind=number", index)
        statements = [s for s in sentences(item.context) if s.startswith("One of the special magic numbers for")]
        asked = item.question.removeprefix("What is the special magic number for ").removesuffix(
            " mentioned in the text?"
        )
        about = [s for s in statements if f"for {asked} is" in s]
        assert len(statements) == 8
        assert len(about) == 1
        assert about[0].endswith(f"{item.answers[0]}.")


def test_following_the_assignments_gives_the_answer() -> None:
    for index in range(20):
        item = make("variables:hops=3,chains=2", index)
        values: dict[str, str] = {}
        for sentence in sentences(item.context):
            if sentence.startswith("VAR "):
                name, source = sentence.removeprefix("VAR ").removesuffix(".").split(" = ")
                values[name] = values[source.removeprefix("VAR ")] if source.startswith("VAR") else source
        asked = item.question.split("VAR ")[1].split(" ")[0]
        assert len(values) == 8
        assert values[asked] == item.answers[0]


def test_a_person_has_one_city_one_job_and_one_pet() -> None:
    item = make("facts:people=5")
    for verb in ("lives in", "works as a", "has a pet"):
        about = [s.split(f" {verb} ")[0] for s in sentences(item.context) if f" {verb} " in s and len(s) < 40]
        assert len(about) == len(set(about)) == 5


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_needle_stands_at_its_depth(depth: float) -> None:
    item = make(f"needle:depth={depth}", length=8000)
    where = item.context.index(item.evidence[0]) / (len(item.context) - len(item.evidence[0]))
    assert item.depth == depth
    assert where == pytest.approx(depth, abs=0.12)


def test_a_problem_is_the_same_with_and_without_a_chain_of_thought() -> None:
    direct, thought = make("reasoning"), make("reasoning-cot")
    assert direct.answers == thought.answers
    assert direct.evidence == thought.evidence
    assert direct.context.split(".")[:3] == thought.context.split(".")[:3]


def test_the_sentences_of_a_problem_stand_in_order_with_filler_between() -> None:
    item = make("reasoning")
    places = [item.context.index(s) for s in item.evidence]
    assert places == sorted(places)
    assert len(sentences(item.context)) > len(item.evidence) + 5


def test_two_lengths_ask_the_same() -> None:
    short, long = make("needle", length=800), make("needle", length=3000)
    assert (short.question, short.answers) == (long.question, long.answers)
    assert len(short.context) < len(long.context)


def test_keys_and_values_share_no_word() -> None:
    assert not {*words.ADJECTIVES, *words.NOUNS} & {*words.FOODS}


def test_woven_places_pieces() -> None:
    assert woven("i", ["a", "b"], ["x", "y", "z"], [0.5, 0.0, 1.0]) == "i y a x b z"
    assert woven("", ["a"], [], []) == "a"


def test_scores() -> None:
    assert found("It is 123.", "123")
    assert not found("It is 51234.", "123")
    assert not found("It is 1.5", "1")
    assert not found("catfish", "cat")
    assert found("A Cat.", "cat")
    assert share_found("1 and 3", ["1", "2", "3", "4"]) == 0.5
    assert number_matches("3 + 4 = 7, so the answer is 7. Not 8.", "7", first=False)
    assert number_matches("we get 1,200", "1200", first=False)
    assert number_matches(" 42 apples out of 50", "42", first=True)
    assert not number_matches("no number", "42", first=True)
    assert not number_matches(" 50 or 42", "42", first=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nedle", "did you mean 'needle'"),
        ("needle:keyz=2", "did you mean 'keys'"),
        ("needle:keys=two", "not a whole number"),
        ("needle:keys", "not key=value"),
        ("needle:keys=0", "at least 1"),
        ("needle:kind=number,digits=1,keys=20", "does not fit"),
        ("needle:keys=40", "there are"),
        ("needle:kind=uuid", "word, number"),
        ("facts:people=5000", "names"),
        ("facts:depth=2", "0 to 1"),
        ("variables:hops=-1", "0 or more"),
        ("reasoning:problem=chess", "gsm_symbolic"),
    ],
)
def test_wrong_tasks_say_why_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_task(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [10, 250])
def test_a_length_too_short_says_so(length: int) -> None:
    with pytest.raises(UsageError, match=r"too short|give a length above"):
        make("needle-multikey:keys=4", length=length)


def test_a_depth_outside_is_refused() -> None:
    with pytest.raises(UsageError, match="outside 0 to 1"):
        make("needle:depth=1.5")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from forward_influence.data.tasks import reasoning

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    reasoning._problem.cache_clear()
    with pytest.raises(UsageError, match=r"forward-influence\[evaluate\]"):
        parse_task("reasoning").item(0, LENGTH, TOKENS)
    reasoning._problem.cache_clear()


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_is_cut_where_the_question_begins(chat: bool) -> None:
    tokenizer = byte_tokenizer(chat=True)
    prompt = make_prompt(tokenizer, "Some context.", "What is it?", "It is", chat)
    before, question, lead = (tokenizer.decode(part) for part in (prompt.context, prompt.question, prompt.lead))
    assert before.endswith("Some context.\n\n")
    assert question == "What is it?"
    assert lead.endswith("It is")
    assert ("<|assistant|>" in lead) is chat
    whole = [[*a.tolist(), *b.tolist()] for a, b in (prompt.parts("seen"), prompt.parts("unseen"))]
    assert whole[0] == whole[1] == encode(tokenizer, before + question + lead)
    assert tokenizer.decode(prompt.parts("seen")[0]) == before + question
    assert tokenizer.decode(prompt.parts("unseen")[0]) == before


def test_chat_needs_a_template() -> None:
    assert wants_chat(byte_tokenizer(chat=True), None)
    assert not wants_chat(byte_tokenizer(), None)
    with pytest.raises(UsageError, match="no chat template"):
        wants_chat(byte_tokenizer(), True)


PINNED = "f6bedb9d0fb12f89"
