import doctest
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import scale_interp as si
from scale_interp.data.image_controls import with_noise, with_other_picture, without_picture
from scale_interp.data.synthetic import FORMS, KINDS, generated_questions
from scale_interp.data.synthetic.kind import SIDE
from scale_interp.data.synthetic.map import BLOCK, COMPASS, DOT
from scale_interp.data.synthetic.maze import EXIT, FLOOR, PATH, START, WALL
from scale_interp.data.synthetic.symbol import SYMBOLS
from scale_interp.errors import DataError
from tests.support import ROOT
from tests.support.spatial_solver import Undecided, grid_cells, maze_rows, positions, right_options

SCENES = {"map": 1800, "maze": 3000, "grid": 2400}
"""Questions that are about at least 1,000 scenes."""


def told(kind, n=20):
    """Each question with its picture, beside the text of the same one."""
    return zip(generated_questions("vqa", kind, n=n), generated_questions("tqa", kind, n=n), strict=True)


@pytest.fixture(scope="module", params=KINDS)
def many(request):
    return generated_questions("tqa", request.param, "train", SCENES[request.param], seed=1)


def test_exactly_one_option_is_right_in_a_thousand_scenes(many):
    assert len({q.group for q in many}) >= 1000
    for q in many:
        assert right_options(q.text) == [q.answer_text], q.text


def test_types_and_answers_come_in_equal_shares(many):
    kinds = KINDS[many[0].meta["kind"]].types
    types = Counter(q.meta["question_type"] for q in many)
    assert types.keys() == kinds.keys() and max(types.values()) - min(types.values()) <= 1
    for name, kind in kinds.items():
        shares = Counter(q.answer_text if kind.by == "answer" else q.relation for q in many if q.meta["question_type"] == name)
        assert set(shares) == set(kind.words) and max(shares.values()) - min(shares.values()) <= 1


def test_neither_place_nor_size_tells_the_right_option(many):
    """Right options are equally often first to fourth, and among numbers equally often smallest to largest."""
    share = len(many) / 4
    assert all(abs(n - share) < 5 * (share * 3 / 4) ** 0.5 for n in Counter(q.answer for q in many).values())
    for name in {q.meta["question_type"] for q in many}:
        numeric = [q for q in many if q.meta["question_type"] == name and q.answer_text.isdigit()]
        ranks = Counter(sorted(map(int, q.choices)).index(int(q.answer_text)) for q in numeric)
        assert not ranks or max(ranks.values()) - min(ranks.values()) <= len(KINDS[many[0].meta["kind"]].types[name].words)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_questions_in_every_form(kind):
    forms = {form: generated_questions(form, kind, n=40, seed=3) for form in FORMS}
    for vqa, vtqa, tqa in zip(*(forms[form] for form in FORMS), strict=True):
        assert vtqa.id == vqa.id.replace("/vqa/", "/vtqa/") and tqa.id == vqa.id.replace("/vqa/", "/tqa/")
        assert (
            vqa.group == vtqa.group == tqa.group and vqa.choices == vtqa.choices == tqa.choices and vqa.answer == vtqa.answer == tqa.answer
        )
        assert vqa.text.splitlines()[-1] == tqa.text.splitlines()[-1] and vtqa.text.endswith(tqa.text)
        assert vtqa.text.startswith(vqa.text.splitlines()[0])
        assert callable(vqa.picture) and vqa.pictures and not tqa.pictures and not tqa.boxes
        assert vqa.image.tobytes() == vtqa.image.tobytes() and vqa.image.size == (SIDE, SIDE)
    again, other = (generated_questions("tqa", kind, n=40, seed=seed) for seed in (3, 4))
    assert list(again) == list(forms["tqa"]) and {q.id for q in other}.isdisjoint(q.id for q in again)
    assert forms["tqa"].source == f"generated/tqa/{kind}" and (again.split, again.seed) == ("test", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_one_scene_asked_several_times_is_one_group_and_one_picture(kind):
    questions = generated_questions("vqa", kind, n=40)
    assert len({q.id for q in questions}) == 40 > len({q.group for q in questions})
    for group in {q.group for q in questions}:
        members = [q for q in questions if q.group == group]
        assert len({q.picture for q in members}) == 1 and len({q.meta["question_type"] for q in members}) == len(members)


@pytest.mark.parametrize("kind", KINDS)
def test_options_do_not_hang_on_how_many_are_asked(kind):
    few, many = ({q.id: q for q in generated_questions("tqa", kind, n=n, seed=5)} for n in (30, 200))
    shared = few.keys() & many.keys()
    assert len(shared) > 15 and all(few[name] == many[name] for name in shared)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_scene(kind):
    keys, names = {}, {}
    for split in ("train", "validation", "test"):
        questions = generated_questions("tqa", kind, split, 150)
        keys[split] = {q.group for q in questions}
        names[split] = {tuple(sorted(positions(q.text))) for q in questions} if kind == "map" else keys[split]
    for parts in (keys, names):
        assert sum(map(len, parts.values())) == len(set.union(*parts.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_about_has_a_box_inside_the_picture(kind):
    for q in generated_questions("vqa", kind, n=80):
        assert set(q.about) <= set(q.boxes)
        assert all(0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE for left, top, right, bottom in q.boxes.values())
        assert json.loads(json.dumps(dict(q.meta))) == q.meta and q.meta["scene_key"] in q.group and q.task == "generated/vqa/" + kind


def codes(colours):
    """Each RGB colour as one number."""
    return np.asarray(colours).astype(int) @ (65536, 256, 1)


def crop(mask, box):
    left, top, right, bottom = (round(edge) for edge in box)
    return mask[top:bottom, left:right]


def test_the_map_drawn_is_the_map_told():
    for drawn, text in told("map"):
        dot, at = codes(drawn.image) == codes(DOT), positions(text.text)
        labelled, count = ndimage.label(dot)
        assert count == len(at) == len(drawn.boxes)
        dots = {}
        for y, x in ndimage.center_of_mass(dot, labelled, range(1, count + 1)):
            (name,) = [n for n, (left, top, right, bottom) in drawn.boxes.items() if left <= x < right and top <= y < bottom]
            dots[name] = complex(x, -y) / BLOCK
        first = next(iter(at))
        assert all(abs(dots[n] - dots[first] - (at[n] - at[first])) < 0.05 for n in at)


def test_names_on_the_map_are_whole_and_apart():
    for drawn, _ in told("map"):
        ink = np.asarray(drawn.image).max(-1) < 120
        for box in drawn.boxes.values():
            assert crop(ink, box).sum() > 30
            crop(ink, box)[:] = False
        crop(ink, COMPASS)[:] = False
        assert not ink.any(), "letters outside their box"
        boxes = list(drawn.boxes.values())
        for i, a in enumerate(boxes):
            assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])


def test_the_maze_drawn_is_the_maze_told():
    main = {"#": codes(WALL), ".": codes(FLOOR), "*": codes(FLOOR), "S": codes(START), "E": codes(EXIT)}
    for drawn, text in told("maze"):
        pixels, rows = codes(drawn.image), maze_rows(text.text)
        (start,) = [(r, row.index("S")) for r, row in enumerate(rows) if "S" in row]
        left, top, right, _ = drawn.boxes["start"]
        side = right - left
        for r, row in enumerate(rows):
            for c, sign in enumerate(row):
                x, y = left + side * (c - start[1]), top + side * (r - start[0])
                assert 0 <= x <= SIDE - side and 0 <= y <= SIDE - side
                square = pixels[y : y + side, x : x + side]
                assert Counter(square.ravel().tolist()).most_common(1)[0][0] == main[sign]
                assert (codes(PATH) in square) == (sign == "*")


def test_the_grid_drawn_is_the_grid_told():
    main = {codes(strokes[-1 if word == "tree" else 0][1]): word for word, strokes in SYMBOLS.items()}
    assert len(main) == len(SYMBOLS)
    for drawn, text in told("grid"):
        pixels = codes(drawn.image)
        for (r, c), word in grid_cells(text.text).items():
            cell = crop(pixels, drawn.boxes[f"row {r}, column {c}"])
            assert {main[colour] for colour in set(cell.ravel().tolist()) & main.keys()} == {word}


MAP_TEXT = (
    "A map shows 4 places and no others: A, B, C, D. "
    "B is 1 block east and 4 blocks north of A. C is 2 blocks west of B. D is 1 block south of C."
)
MAZE_TEXT = "A maze.\n#######\n#S**#.#\n###*#.#\n#E**..#\n#######"
GRID_TEXT = "A grid has 2 rows and 3 columns.\nRow 1: star, fish, cat.\nRow 2: fish, tree, fish."


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f"{MAP_TEXT}\nIn which direction from A is B? Answer with north, east, south or west.", ["north"]),
        (f"{MAP_TEXT}\nIn which direction from D is C? Answer with south, north, west or east.", ["north"]),
        (f"{MAP_TEXT}\nWhich of these places is west of B? Answer with A, C or B.", ["C"]),
        (f"{MAP_TEXT}\nHow many of the other places are further north than A? Answer with 0, 1, 2 or 3.", ["3"]),
        (f"{MAP_TEXT}\nHow many of the other places are further north and further west than A? Answer with 0, 1, 2 or 3.", ["2"]),
        (f"{MAZE_TEXT}\nWhere is the exit relative to the start, seen from above? Answer with left, right, above or below.", ["below"]),
        (f"{MAZE_TEXT}\nWalking, how many times does one turn right? Answer with 0, 1, 2 or 3.", ["2"]),
        (f"{MAZE_TEXT}\nWalking, how many times does one turn left? Answer with 0, 1, 2 or 3.", ["0"]),
        (f"{MAZE_TEXT}\nWalking, how many steps does one take? Answer with 5, 6, 7 or 8.", ["6"]),
        (f"{GRID_TEXT}\nWhich symbol is in row 2, column 2? Answer with star, fish, cat or tree.", ["tree"]),
        (f"{GRID_TEXT}\nHow many cells hold a fish? Answer with 0, 1, 2 or 3.", ["3"]),
        (f"{GRID_TEXT}\nWhich symbol is diagonally above and to the left of the only tree? Answer with star or cat.", ["star"]),
        (f"{GRID_TEXT}\nWhich symbol is directly below the symbol in row 1, column 3? Answer with fish or cat.", ["fish"]),
    ],
)
def test_the_solver_on_scenes_made_by_hand(text, right):
    assert right_options(text) == right


@pytest.mark.parametrize(
    "text",
    [
        f"{MAP_TEXT.replace('C is 2 blocks west of B. ', '')}\nIn which direction from A is B? Answer with north or east.",
        f"{MAP_TEXT}\nIn which direction from A is D? Answer with north or west.",
        f"{MAP_TEXT}\nHow many of the other places are further north than B? Answer with 0 or 1.",
        f"{MAZE_TEXT.replace('#S**#.#', '#S**..#')}\nWhere is the exit relative to the start, seen from above? Answer with left or below.",
        f"{GRID_TEXT}\nWhich symbol is directly above the only fish? Answer with star or cat.",
    ],
)
def test_the_solver_refuses_what_the_words_leave_open(text):
    with pytest.raises(Undecided):
        right_options(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("picture", "map"), "unknown form 'picture'"),
        (("vqa", "city"), "unknown kind 'city'"),
        (("vqa", "map", "dev"), "unknown split 'dev'"),
        (("vqa", "map", "test", 0), "at least one"),
    ],
)
def test_wrong_requests_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        generated_questions(*arguments)


def test_the_examples_in_the_docs_run():
    page = ROOT / "docs" / "generated.md"
    outcome = doctest.testfile(str(page), module_relative=False)
    assert outcome.attempted > 5 and not outcome.failed


@pytest.fixture(scope="module")
def asked():
    return generated_questions("vqa", "grid", n=40)


@pytest.mark.parametrize("control", [without_picture, with_other_picture, with_noise])
def test_controls_change_the_picture_and_nothing_else(asked, control):
    changed = control(asked)
    name = changed.source.removeprefix("generated/vqa/grid ")
    assert name in ("no-picture", "other-picture", "noise") and (changed.split, changed.seed) == (asked.split, asked.seed)
    for q, other in zip(asked, changed, strict=True):
        assert other.id == f"{q.id}~{name}" and other.meta["control"] == name and not other.boxes
        kept = ("text", "choices", "answer", "group", "task", "relation", "about")
        assert all(getattr(q, field) == getattr(other, field) for field in kept)


def test_no_picture_at_all(asked):
    assert all(q.images == [] for q in without_picture(asked)) and len(without_picture(asked[0])) == 1


def test_other_pictures_are_of_another_group_and_stay_together(asked):
    picture = {q.group: q.picture for q in asked}
    owner = {picture: group for group, picture in picture.items()}
    given = {}
    for q in with_other_picture(asked, seed=2):
        given.setdefault(q.group, set()).add(owner[q.picture])
        assert q.meta["picture_of"] in {a.id for a in asked if a.group == owner[q.picture]}
    assert all(len(owners) == 1 and group not in owners for group, owners in given.items())
    assert set.union(*given.values()) == set(given)
    first, again, other = ([q.picture for q in with_other_picture(asked, seed)] for seed in (2, 2, 3))
    assert first == again != other


def test_noise_is_of_the_same_size_seeded_and_lazy(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    questions = [
        si.Question("Where?", ("left", "right"), 0, picture=[tmp_path / "a.png", Image.new("RGB", (7, 9))], id="two", group="a"),
        si.Question("Where is it?", ("left", "right"), 0, picture=tmp_path / "a.png", id="same", group="a"),
        si.Question("Where?", ("left", "right"), 0, picture=tmp_path / "absent.png", id="absent"),
    ]
    two, same, absent = with_noise(questions)
    assert [image.size for image in two.images] == [(40, 20), (7, 9)] and two.pictures[0] is same.pictures[0]
    assert (
        two.image.tobytes()
        == two.image.tobytes()
        == with_noise(questions)[0].image.tobytes()
        != with_noise(questions, 1)[0].image.tobytes()
    )
    assert 60 < np.std(np.asarray(two.image)) < 90
    with pytest.raises(DataError, match="no image at"):
        _ = absent.image


def test_questions_with_several_pictures_take_as_many():
    def question(name, *pictures):
        return si.Question("Where?", ("left", "right"), 0, picture=[Image.new("RGB", (8, 8)) for _ in pictures], id=name, group=name)

    questions = [question("a", 1), question("b", 1, 2), question("c", 1, 2), question("d", 1)]
    changed = with_other_picture(questions)
    assert [q.meta["picture_of"] for q in changed] == ["d", "c", "b", "a"] and [len(q.pictures) for q in changed] == [1, 2, 2, 1]
    with pytest.raises(DataError, match=r"2 image\(s\) are of one group, 'b'"):
        with_other_picture([questions[0], questions[3], questions[1]])


def test_controls_refuse_what_they_cannot_change(asked):
    with pytest.raises(DataError, match="has no image"):
        with_noise([*asked[:2], generated_questions("tqa", "grid", n=1)[0]])
    with pytest.raises(DataError, match="give all questions about one image the same group"):
        with_other_picture([asked[0], replace(asked[0], id="again", group="other")])
    with pytest.raises(DataError, match="empty set"):
        without_picture([])


def test_controls_of_rendered_scenes_forget_the_scene():
    changed = with_noise(si.load_questions("scenes/relation", n=3))
    assert all("scene" not in q.meta for q in changed)
