"""The rules of SpatialEval's release and of two harnesses, and letters under the strict rule, against tables made by hand."""

import pytest

import scale_interp as si
from scale_interp.data.question import LETTERED
from scale_interp.errors import DataError
from scale_interp.evaluation.released_scoring import READ
from scale_interp.evaluation.scoring import score_text

YES_NO = ("yes", "no")
FORESTS = ("oak wood", "pine wood", "river", "lake")


def yes_no(task="pope/random", answer=0):
    return si.Question("Is there a dog?", YES_NO, answer, id="yn", task=task)


def lettered(*words, answer=0):
    options = dict(zip("ABCDEFGHIJ", words, strict=False))
    return si.Question("Which one?", tuple(options), answer, id="abc", meta={LETTERED: options})


STRICT_LETTERS = [
    ("A", "A"),
    ("a", "A"),
    ("b.", "B"),
    ("(C)", "C"),
    ("D)", "D"),
    ("B.", "B"),
    ("**B**", "B"),
    ("'D'", "D"),
    ("[A]", "A"),
    ("A. oak wood", "A"),
    ("A: oak wood", "A"),
    ("A, the oak wood", "A"),
    ("oak wood", "A"),
    ("It is the Pine Wood.", "B"),
    ("B. pine wood", "B"),
    ("B. oak wood", None),
    ("The answer is C", "C"),
    ("The answer is A.", "A"),
    ("The answer is (A) oak wood", "A"),
    ("C is right", "C"),
    ("I think it is a lake", "D"),
    ("A lake", "D"),
    ("A river or a lake", None),
    ("A is right", "A"),
    ("A dog", None),
    ("A or B", None),
    ("A and B.", None),
    ("B, not A.", None),
    ("not B", None),
    ("It isn't C.", None),
    ("It is C, isn't it?", None),
    ("E", None),
    ("", None),
    ("A.\nA. oak wood", "A"),
    ("Option D", "D"),
    ("Option D: lake", "D"),
    ("DAB", None),
    ("it's B's turn", None),
    ("the woods", None),
]


@pytest.mark.parametrize(("text", "named"), STRICT_LETTERS)
def test_a_letter_is_an_answer_for_the_strict_rule(text, named):
    found = score_text(text, lettered(*FORESTS))
    assert found == (None if named is None else "ABCD".index(named))


def test_letters_that_stand_for_nothing_known_are_answers_too():
    bare = si.Question("Which one?", ("A", "B", "C", "I"), 0)
    said = {"A": 0, "b.": 1, "(C)": 2, "I": 3, "I think so": None, "A cat": None, "It is A.": 0, "not C": None, "C or I": None}
    assert {text: score_text(text, bare) for text in said} == said


VLMEVALKIT_YES_NO = [
    ("Yes", "yes"),
    ("yes", "yes"),
    ("YES.", "yes"),
    ("No", "no"),
    ("No.", "no"),
    ("no, there is no dog", "no"),
    ("Yes, there is a dog.", "yes"),
    ("yes!", "yes"),
    ("yes?", "yes"),
    ("(yes)", "yes"),
    ("[No]", "no"),
    ('"No"', "no"),
    ("Answer: yes", "yes"),
    ("Yes\nThere is one.", "yes"),
    ("Yes. Yes. Yes.", "yes"),
    ("There is not", None),
    ("None", None),
    ("Nothing", None),
    ("I know", None),
    ("", None),
    ("Yes or no", None),
    ("yes/no", None),
    ("no-one", "no"),  # the hyphen becomes a space
    ("no - one", "no"),  # and here it is dropped
    ("no-one - here", None),  # beside a space anywhere, it is dropped everywhere: "noone"
    ("Yes.No", None),  # the full stop is dropped: "yesno"
    ("yes,maybe", "yes"),  # the comma becomes a space
    ("yes,maybe, or so", None),  # beside a space anywhere, it is dropped everywhere: "yesmaybe"
    ("yes;10,000 dogs", None),  # a comma in a number: every mark is dropped
    ("**Yes**", None),  # asterisks stay
    ("'yes'", None),  # and so do quotes
    ("yes:", None),  # and colons
    ("Yes.1", None),  # the full stop before a digit stays
    ("There isn't, no", "no"),
    ("It is yes, not no", None),
    ("yess", None),
]


@pytest.mark.parametrize(("text", "named"), VLMEVALKIT_YES_NO)
@pytest.mark.parametrize("task", ["pope/random", "vsr/zeroshot"])
@pytest.mark.parametrize("answer", [0, 1])
def test_vlmevalkit_takes_a_text_with_one_of_yes_and_no(text, named, task, answer):
    """Whatever is right."""
    found = score_text(text, yes_no(task, answer), "vlmevalkit")
    assert found == (None if named is None else YES_NO.index(named))


VLMEVALKIT_LETTERS = [
    ("A", "A"),
    ("B.", "B"),
    ("(C)", "C"),
    ("D)", "D"),
    ("[D]", "D"),
    ("**B**", "B"),
    ("B: pine wood", "B"),
    ("#C", "C"),
    ("The answer is C", "C"),
    ("The answer is (A).", "A"),
    ("The correct answer is B.", "B"),
    ("Option D", "D"),
    ("A. oak wood", "A"),
    ("B. oak wood", "B"),  # the letter first, whatever the words
    ("b", None),  # only capitals
    ("a", None),
    ("A or B", None),
    ("A, B", None),
    ("oak wood", "A"),
    ("It is the LAKE", "D"),
    ("a lake or a river", None),
    ("lakeside", "D"),  # words within words
    ("C because one can see it there", None),  # the letter is too far from the end, and no words are in the text
    ("C, the one with so many trees, a river", "C"),
    ("D, the one with so many trees, a river", "C"),  # too far from the end, so the words decide
    ("A lake is what one sees there", "D"),
    ("It is a thing which I would call by the name of river, if I had to name it at all, as one must", None),  # too long for words
    ("Answer: A", "A"),
    ("Answer:B", "B"),
    ("Answer-B", None),
    ("'B'", None),  # quotes stay
    ("", None),
    ("E", None),
    ("AB", None),
    ("Cannot determine the answer. B", None),
    ("I'm sorry, but without the image provided I guess B", None),
]


@pytest.mark.parametrize(("text", "named"), VLMEVALKIT_LETTERS)
def test_vlmevalkit_takes_a_lone_letter_or_the_words_of_one_option(text, named):
    found = score_text(text, lettered(*FORESTS), "vlmevalkit")
    assert found == (None if named is None else "ABCD".index(named))


LMMS_EVAL = [
    *[(text, "yes") for text in ("yes", "Yes", "YES", " yes ", "yes\n", "\tYes", "yEs")],
    *[(text, "no") for text in ("no", "No", "NO", "no ", "\nNo\n", "nO")],
    *[(text, None) for text in ("Yes.", "No.", "yes,", "no!", "Yes, it is", "No, it is not", "'yes'", "**No**", "(yes)", "yes yes")],
    *[(text, None) for text in ("", " ", "y", "n", "nope", "yeah", "true", "not", "yes or no", "Answer: yes", "there is", "A")],
]


@pytest.mark.parametrize(("text", "named"), LMMS_EVAL)
@pytest.mark.parametrize("answer", [0, 1])
def test_lmms_eval_takes_the_whole_text(text, named, answer):
    found = score_text(text, yes_no(answer=answer), "lmms-eval")
    assert found == (None if named is None else YES_NO.index(named))


def spatial(kind, type_, right, choices):
    return si.Question("?", choices, choices.index(right), id="s", meta={"kind": kind, "question_type": type_})


COMPASS = ("Northeast", "Northwest", "Southeast", "Southwest")
SHOPS = ("Lily's Cafe", "Oz Oddities", "Store", "Tremor Toys")
RELEASE = [
    ("map", "direction", "B. Northwest", COMPASS, "Northwest"),
    ("map", "direction", "B.northwest", COMPASS, "Northwest"),
    ("map", "direction", "It is southeast of it.", COMPASS, "Southeast"),
    ("map", "direction", "Not southeast, northwest.", COMPASS, "Southeast"),  # the first one
    ("map", "direction", "southeast? No: A. Northeast", COMPASS, "Northeast"),  # one behind a letter before all others
    ("map", "direction", "B", COMPASS, None),  # a bare letter is none
    ("map", "direction", "north-west", COMPASS, None),
    ("map", "object", "Oz Oddities is in the southeast of the map.", SHOPS, "Oz Oddities"),
    ("map", "object", "Store is located to the northwest of it", SHOPS, "Store"),
    ("map", "object", "D. Tremor Toys.", SHOPS, "Tremor Toys"),
    ("map", "object", "D. **Tremor Toys** is the one, not the Store", SHOPS, "Tremor Toys"),
    ("map", "object", "D, Tremor Toys", SHOPS, None),  # the letter is taken, not what follows it
    ("map", "object", "(d) Tremor Toys is it", SHOPS, None),  # not a letter after all, and nothing follows "is" but "it"
    ("map", "object", "The answer is Lily's Cafe.", SHOPS, "Lily's Cafe"),
    ("map", "object", "Therefore, the object in the northeast of Store is Oz Oddities", SHOPS, "Oz Oddities"),
    ("map", "object", "Oz Oddities", SHOPS, None),  # the bare name is none
    ("map", "object", "A. Store and Tremor Toys", SHOPS, "Store"),  # contained: the right one, and others too
    ("map", "count", "C. 3", ("0", "1", "2", "3"), "3"),
    ("map", "count", "There are two, or 3.", ("0", "1", "2", "3"), "2"),
    ("map", "count", "12", ("0", "1", "2", "3"), "1"),  # 1 is in 12
    ("map", "count", "None", ("0", "1", "2", "3"), None),
    ("map", "count", "No shop is there", ("0", "1", "2", "3"), "0"),
    ("maze", "right turns", "There are 2 right turns", ("0", "1", "2", "3"), "2"),
    ("maze", "right turns", "3 turns, and 2 right turns", ("0", "1", "2", "3"), "2"),
    ("maze", "right turns", "two right turns and one left turn", ("0", "1", "2", "3"), "1"),  # one before two, wherever they stand
    ("maze", "right turns", "There is no doubt: 3", ("0", "1", "2", "3"), "0"),  # "no" is zero
    ("maze", "turns", "The answer is: 3", ("0", "1", "2", "3"), "3"),
    ("maze", "turns", "A total of 3 turns", ("0", "1", "2", "3"), "3"),
    ("maze", "turns", "3", ("0", "1", "2", "3"), "3"),
    ("maze", "relation", "Yes", ("Yes", "No"), "Yes"),
    ("maze", "relation", "No, it is not; yes would be wrong", ("Yes", "No"), "Yes"),  # yes before no
    ("maze", "relation", "It is not.", ("Yes", "No"), "No"),
    ("maze", "relation", "B", ("Yes", "No"), "No"),  # nothing is found, which reads "none", and that contains "no"
    ("maze", "relation", "", ("Yes", "No"), "No"),
    ("grid", "count", "There are four blocks, 2 cats", ("0", "1", "2", "4"), "4"),
    ("grid", "count", "B. 2", ("0", "1", "2", "4"), "2"),
    ("grid", "corner", "C. Giraffe", ("cat", "dog", "giraffe", "rabbit"), "giraffe"),
    ("grid", "corner", "a dog, not a cat", ("cat", "dog", "giraffe", "rabbit"), "dog"),
    ("grid", "cell", "dogs", ("cat", "dog", "giraffe", "rabbit"), None),
]


@pytest.mark.parametrize(("kind", "type_", "text", "choices", "named"), RELEASE)
def test_release_scores_as_spatialeval_does(kind, type_, text, choices, named):
    for right in choices:
        question = spatial(kind, type_, right, choices)
        counts = score_text(text, question, "release") == question.answer
        said = str(READ[kind, type_](text)).lower()
        assert counts == (right.lower() in said)
        if right == named:
            assert counts
        elif named is None:
            assert not counts


def test_tables_are_long_enough():
    for table in (STRICT_LETTERS, VLMEVALKIT_YES_NO, VLMEVALKIT_LETTERS, LMMS_EVAL, RELEASE):
        assert len(table) >= 30 and len({str(row) for row in table}) == len(table)


def test_a_rule_needs_its_kind_of_question():
    where = si.Question("Where?", ("left", "right"), 0, id="w", task="spatialeval/vqa/real", meta={"kind": "real", "question_type": "0"})
    for scorer, needs in (("release", "no rule for kind 'real'"), ("vlmevalkit", "options='letters'"), ("lmms-eval", "needs yes and no")):
        with pytest.raises(DataError, match=needs):
            score_text("left", where, scorer)


def test_lettered_answers_are_scored_by_every_rule_that_reads_words():
    question = lettered("left", "right", answer=1)
    assert si.score_answers(["B", "right", "B. right", "left"], [question] * 4).accuracy == 0.75
    assert score_text("to the right", question, "legacy") == 1
