import json
import re
from collections import Counter

import pytest

import scale_interp as si
from scale_interp.data.decomposed import TAXONOMY, cog_questions
from scale_interp.data.readers.cogvsr import CogQuestion, Sub, read_cog, subquestions
from scale_interp.errors import DataError

NUMBERS = ["zero", "one", "two", "three", "four"]
OURS = {
    "question": "Is the cat on the mat?",
    "answer": "yes",
    "image": "a.jpg",
    "subquestions": [
        {"question": "What animal is there?", "answer": "a cat", "function": "visual reception"},
        {"question": "How many mats?", "answer": 1, "function": "counting", "choices": ["0", "1", "2"]},
    ],
}
COGQA = {
    "question": "How much is 2 * 3 + 1?",
    "answer": "7",
    "generated": [
        {"subquestion": "What is 2 * 3?", "answer": 6, "cognitive_skill": "Math Calculation"},
        {"subquestion": "What is 6 + 1?", "answer": "7", "cognitive_skill": "Math Calculation"},
        {"subquestion": "Is 7 the answer?", "answer": "Yes", "cognitive_skill": "Decision-making"},
    ],
}


@pytest.fixture(scope="module")
def cogs():
    return cog_questions("train", n=48, seed=3)


def right_answer(question):
    """The answer by the words of the question and the boxes of the picture, without the generator."""
    middle = {name: ((b[0] + b[2] - 1) / 2, (b[1] + b[3] - 1) / 2) for name, b in question.boxes.items()}
    text = question.text

    def way(dx, dy, words):
        left, right, up, down = words
        return (left if dx < 0 else right) if abs(dx) > abs(dy) else (up if dy < 0 else down)

    if found := re.fullmatch(r"Is there a (.+)\?", text):
        return "yes" if found[1] in middle else "no"
    if text == "How many things are there?":
        return NUMBERS[len(middle)]
    if found := re.fullmatch(r"How many (\w+) things are there\?", text):
        return NUMBERS[sum(name.endswith(found[1]) for name in middle)]
    if found := re.fullmatch(r"What shape is the (\w+) thing\?", text):
        (name,) = [n for n in middle if n.startswith(found[1])]
        return name.split()[1]
    if found := re.fullmatch(r"What colour is the (\w+)\?", text):
        (name,) = [n for n in middle if n.endswith(found[1])]
        return name.split()[0]
    if found := re.fullmatch(r"In which (column|row) is the (.+)\?", text):
        return ["first", "second", "third", "fourth"][int(middle[found[2]][found[1] == "row"] // 14)]
    if found := re.fullmatch(r"Where is the (.+) in the picture\?", text):
        x, y = middle[found[1]]
        return way(x - 27.5, y - 27.5, ("left", "right", "top", "bottom"))
    if found := re.fullmatch(r"Where is the (.+) relative to the (.+)\?", text):
        (x, y), (u, v) = middle[found[1]], middle[found[2]]
        return way(x - u, y - v, ("left", "right", "above", "below"))
    found = re.fullmatch(r"Is the (\w+ \w+) (left|right|above|below)(?: of)? the (\w+ \w+)\?", text)
    (x, y), (u, v) = middle[found[1]], middle[found[3]]
    return "yes" if way(x - u, y - v, ("left", "right", "above", "below")) == found[2] else "no"


def test_every_step_of_a_scene_is_answered_right(cogs):
    asked = Counter()
    for cog in cogs:
        assert [f for _, f in cog.subquestions] == list(dict.fromkeys(TAXONOMY.values()))
        for question, _ in cog.subquestions:
            assert question.answer_text == right_answer(question), question.text
            assert question.group == cog.group
            asked[question.task] += 1
        assert cog.question.answer_text == right_answer(cog.question)
    assert asked.keys() == TAXONOMY.keys()


def test_main_answers_and_relations_are_balanced_and_seeded(cogs):
    assert Counter(c.question.answer_text for c in cogs) == {"yes": 24, "no": 24}
    told = Counter(q.answer_text for c in cogs for q, f in c.subquestions if f == "relational reasoning")
    assert set(told.values()) == {12}
    again = cog_questions("train", n=48, seed=3)
    assert [c.id for c in again] == [c.id for c in cogs] != [c.id for c in cog_questions("train", n=48, seed=4)]
    assert not {c.group for c in cogs} & {c.group for c in cog_questions("test", n=48, seed=3)}


def test_the_embedded_model_knows_every_word(vlm, cogs):
    unknown = vlm.tokenizer.unk_token_id
    for question in subquestions(cogs[:12], context=True):
        assert unknown not in vlm.tokenizer(question.text)["input_ids"]
        assert all(len(ids) == 1 for ids in vlm.choice_ids(question))


def test_context_holds_the_steps_before_and_their_answers(cogs):
    plain, told = subquestions(cogs[:5]), subquestions(cogs[:5], context=True)
    assert [q.answer for q in plain] == [q.answer for q in told]
    assert not {q.id for q in plain} & {q.id for q in told}
    steps = [q for q in told if q.meta["chain"] == cogs[0].id]
    first, second = cogs[0].subquestions[:2]
    assert steps[0].text == first.question.text
    assert steps[1].text == f"{first.question.text} {first.question.answer_text}. {second.question.text}"
    assert [q.meta["step"] for q in steps] == list(range(1, len(steps) + 1))


def test_functions_are_balanced_by_leaving_steps_out(cogs):
    mixed = [cogs[0], cogs[1], CogQuestion(cogs[2].question, cogs[2].subquestions[:2])]
    assert set(Counter(q.meta["function"] for q in subquestions(mixed)).values()) == {2}
    assert len(subquestions(mixed, balanced=False)) == 2 * 7 + 2
    drawn = {tuple(q.id for q in subquestions(mixed, seed=s)) for s in range(12)}
    assert len(drawn) > 1


def test_a_taxonomy_of_ones_own():
    found = cog_questions("train", n=4, taxonomy={"row": "where", "column": "where", "colour": "what"})
    assert all([f for _, f in c.subquestions] == ["where", "what"] for c in found)


def test_both_file_forms_are_read(tmp_path):
    other = OURS | {"subquestions": [{"question": "What animal?", "answer": "a dog", "function": "visual reception"}]}
    (tmp_path / "ours.jsonl").write_text(f"{json.dumps(OURS)}\n\n{json.dumps(other)}\n")
    ours = read_cog(tmp_path / "ours.jsonl")
    assert [c.group for c in ours] == ["cog/a.jpg"] * 2 and ours[0].question.choices == ("yes", "no")
    animal, mats = ours[0].subquestions
    assert set(animal.question.choices) == {"a cat", "a dog"} and animal.question.answer_text == "a cat"
    assert set(mats.question.choices) == {"0", "1", "2"} and mats.question.answer_text == "1" and mats.function == "counting"
    assert animal.question.picture == tmp_path / "a.jpg"
    (tmp_path / "cogqa.json").write_text(json.dumps([COGQA, COGQA | {"question": "What is 2 * 4?", "answer": "8"}]))
    first, second = read_cog(tmp_path / "cogqa.json")
    assert [f for _, f in first.subquestions] == ["Math Calculation"] * 2 + ["Decision-making"]
    assert set(first.subquestions[0].question.choices) == {"6", "7"}
    assert first.subquestions[2].question.choices == ("Yes", "no") and first.question.picture is None
    assert first.group != second.group


def test_a_file_of_paragraphs_is_read_once_its_function_is_named(tmp_path):
    """CogQA's file of extractions: {paragraph, question, answer}, and no steps."""
    asked = [{"paragraph": f"It rained in {place}.", "question": "Where did it rain?", "answer": place} for place in ("Rome", "Oslo")]
    (tmp_path / "extraction_qa.json").write_text(json.dumps(asked))
    with pytest.raises(DataError, match="give function="):
        read_cog(tmp_path / "extraction_qa.json")
    found = read_cog(tmp_path / "extraction_qa.json", function="Retrieval")
    assert [(q.text, q.answer_text, f) for c in found for q, f in c.subquestions] == [
        (f"It rained in {place}.\nWhere did it rain?", place, "Retrieval") for place in ("Rome", "Oslo")
    ]
    (tmp_path / "mixed.json").write_text(json.dumps([COGQA, COGQA | {"question": "What is 2 * 4?", "answer": "8"}, *asked]))
    assert [len(c.subquestions) for c in read_cog(tmp_path / "mixed.json", function="Retrieval")] == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (OURS | {"subquestions": []}, "at least one subquestion"),
        ({k: v for k, v in OURS.items() if k != "subquestions"}, "at least one subquestion"),
        (OURS | {"answer": None}, "'answer' is None"),
        (OURS | {"answer": True}, "give text or a number"),
        (OURS | {"image": "../a.jpg"}, "leaves the set's folder"),
        (OURS | {"subquestions": [{"question": "?", "answer": "x", "function": ""}]}, "'function' is ''"),
        (OURS | {"subquestions": [{"question": "?", "answer": "x", "function": "f"}]}, "no other answer with function 'f'"),
        (OURS | {"subquestions": [{"question": "?", "answer": "x", "function": "f", "choices": ["y", "z"]}]}, "none of the choices"),
        (OURS | {"answer": "on it"}, "no other answer among the main questions"),
        ([1], "not a JSON object"),
    ],
)
def test_wrong_records_are_refused(tmp_path, record, message):
    (tmp_path / "bad.jsonl").write_text("\n" + json.dumps(record if record != [1] else 1))
    with pytest.raises(DataError, match=message):
        read_cog(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cog_questions("tests"), "unknown split"),
        (lambda: cog_questions(n=0), "n=0"),
        (lambda: cog_questions(taxonomy={"smell": "x"}), "'smell' is not a kind of step"),
        (lambda: cog_questions(taxonomy={}), "choose from"),
        (lambda: subquestions([]), "empty set"),
        (lambda: read_cog("nowhere.jsonl"), "no file"),
        (lambda: CogQuestion(si.load_questions("scenes/relation", n=1)[0], ()), "no subquestions"),
    ],
)
def test_wrong_requests_are_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_steps_share_their_picture():
    a, b = si.load_questions("scenes/relation", n=2)
    with pytest.raises(DataError, match="steps share their image"):
        CogQuestion(a, (Sub(b, "relational reasoning"),))
    with pytest.raises(DataError, match="no function"):
        CogQuestion(a, (Sub(a, " "),))
