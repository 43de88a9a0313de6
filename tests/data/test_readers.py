import json
import re
import tracemalloc
import warnings
from collections import Counter

import datasets
import pytest
from PIL import Image
from scipy.stats import chisquare
from typer.testing import CliRunner

import scale_interp as si
from scale_interp.cli import app
from scale_interp.data import question as question_module
from scale_interp.data.prompts import TEMPLATES
from scale_interp.data.readers.captions import read_place, read_relation
from scale_interp.data.readers.catalog import CATALOG
from scale_interp.data.readers.image_files import coco_names
from scale_interp.data.readers.spatialeval import read_options
from scale_interp.data.readers.vsr import CATEGORY
from scale_interp.data.splits import split_of
from scale_interp.errors import DataError, DataWarning
from tests.support import ROOT, SAMPLES
from tests.support.official_sets import (
    COUNTS,
    cocoqa_answer,
    dump,
    dump_lines,
    picture,
    pope_line,
    spatialeval_rows,
    spatialeval_table,
    write_all,
    write_controlled,
)

needs_samples = pytest.mark.skipif(not (SAMPLES / "vsr").is_dir(), reason=f"no genuine samples in {SAMPLES}: set SCALE_INTERP_DATA")
no_pictures = pytest.mark.filterwarnings("ignore:.*no image on disk")
CHOICES = ["left", "right", "above", "below"]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def no_hub(monkeypatch):
    real = datasets.load_dataset

    def fail(path, *args, **kwargs):
        if path == "parquet":
            return real(path, *args, **kwargs)
        raise ConnectionError("no way to the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)


def write_jsonl(folder, *records, name="mine.jsonl"):
    base = {"image": None, "question": "Where is it?", "choices": CHOICES, "answer": "left"}
    dump_lines(folder / name, [base | r for r in records])
    return f"jsonl:{folder / name}"


# The sets as their authors publish them.


def test_the_catalogue_is_the_table_of_counts():
    assert {(e.name, split): count for e in CATALOG.values() for split, count in e.counts.items()} == COUNTS


@no_pictures
@pytest.mark.parametrize(
    ("name", "split"), [pytest.param(*asked, marks=pytest.mark.full if n > 30_000 else ()) for asked, n in COUNTS.items()]
)
def test_official_counts(full, no_hub, name, split):
    questions = si.load_questions(name, split, root=full)
    assert len(questions) == COUNTS[name, split] and questions.source == name and questions.split == split
    assert len({q.id for q in questions}) == len(questions)
    assert all(q.id.startswith(f"{name}/") and q.task == name and q.answer_text in q.choices for q in questions)


@no_pictures
def test_what_is_asked_of_each_set(full):
    """One record of each set, read by hand."""

    def first(name, split=None, **wanted):
        questions = si.load_questions(name, split, root=full)
        return next(q for q in questions if all(getattr(q, k) == v for k, v in wanted.items()))

    q = first("whatsup/controlled_b", relation="front")
    assert q.about[1] == "table" and q.answer_text == "front" and set(q.choices) == {"left", "right", "front", "behind"}
    assert (q.group, q.meta["set"]) == ("whatsup/thing-0_in-front_of_table", "thing-0|table") and q.image.size == (8, 6)
    assert re.fullmatch(
        r"What is the position of the thing 0 relative to the table\? Answer with one word: (\w+), (\w+), (\w+) or (\w+)\.", q.text
    )
    assert tuple(re.findall(r"\w+", q.text.split(":")[1].replace(" or ", " "))) == q.choices
    q = first("coco_qa/one", relation="top")
    assert (q.about, q.group, q.answer_text) == (("potted plant",), "coco/000000000101", "top")
    assert q.meta["captions"] == ["A photo of a potted plant on the top", "A photo of a potted plant on the bottom"]
    q = first("coco_qa/two", relation="below")
    assert q.about == ("dining table", "orange") and q.picture == full / "coco/val2017/000000000101.jpg"
    assert Counter(q.answer_text for q in si.load_questions("vg_qa/two", root=full)) == {
        "right": 137,
        "left": 127,
        "front": 19,
        "behind": 5,
        "above": 3,
    }
    q = first("vsr/zeroshot", relation="at the edge of")
    assert (q.choices, q.answer_text, q.meta["category"], q.group) == (("yes", "no"), "no", "Adjacency", "coco/000000000000")
    assert q.about == ("cat", "dog") and '"The cat is at the edge of the dog."' in q.text and q.meta["annotator_id"] == 2
    q = first("pope/adversarial")
    assert (q.id, q.about, q.answer_text, q.meta["kind"]) == ("pope/adversarial/1", ("apple",), "yes", "adversarial")
    q = first("spatialeval/vtqa/map", about=("A Shop", "B's Bar"))
    assert (q.group, q.answer_text, q.relation, q.meta["question_type"]) == ("spatialeval/map/2000", "Northeast", "northeast", "direction")
    assert q.image.size == (8, 6) and "Available options" not in q.text and "A described scene." in q.text
    assert first("spatialeval/tqa/maze", choices=("Yes", "No")).picture is None
    (q,) = si.load_questions("cocoqa", "train", n=1, root=full)
    number = int(q.id.removeprefix("cocoqa/train/"))
    assert q.text.startswith(f"what is thing number {number} ? Answer with one of these: ") and q.group == f"coco/{number // 2:012d}"
    assert q.answer_text == cocoqa_answer(number) and len(set(q.choices)) == 4


@no_pictures
def test_forms_of_spatialeval_ask_alike(full):
    forms = {form: si.load_questions(f"spatialeval/{form}/grid", root=full) for form in ("vqa", "vtqa", "tqa")}
    for a, b, c in zip(*forms.values(), strict=True):
        assert a.choices == b.choices == c.choices and a.group == b.group == c.group and a.answer == c.answer


def test_spatialeval_reads_the_published_table_from_the_hub(monkeypatch, tmp_path):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return spatialeval_table("vqa", spatialeval_rows("vqa")[:3])

    monkeypatch.setattr(datasets, "load_dataset", load)
    questions = si.load_questions("spatialeval/vqa/map", root=tmp_path)
    assert len(questions) == 3 and questions[0].image.size == (8, 6)
    assert asked == [(("MilaWang/SpatialEval", "vqa"), {"split": "test"})]


def test_vsr_and_pope_from_the_hub(monkeypatch, tmp_path):
    vsr = {"image": "000000000007.jpg", "caption": "The cat is on the bed.", "label": 1, "relation": "on", "subj": "cat", "obj": "bed"}
    pope = {
        "id": "0",
        "question_id": "1",
        "question": "Is there a dog in the image?",
        "answer": "no",
        "image_source": "COCO_val2014_000000000007",
    }
    tables = {
        "cambridgeltl/vsr_random": datasets.Dataset.from_list([vsr]),
        "lmms-lab/POPE": datasets.Dataset.from_list([pope | {"image": {"bytes": picture(), "path": None}}]).cast_column(
            "image", datasets.Image()
        ),
    }
    asked = {}

    def load(path, config, **kwargs):
        asked[path] = config, kwargs
        return tables[path]

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.warns(DataWarning, match="1 of 1 questions have no image on disk"):
        (q,) = si.load_questions("vsr/random", "validation", root=tmp_path)
    assert q.answer_text == "yes" and q.group == "coco/000000000007"
    (q,) = si.load_questions("pope/popular", root=tmp_path)
    assert q.answer_text == "no" and q.about == ("dog",) and q.group == "coco/000000000007" and q.image.size == (8, 6)
    assert asked["cambridgeltl/vsr_random"] == (None, {"split": "validation", "data_files": {"validation": "dev.jsonl"}})
    assert asked["lmms-lab/POPE"] == ("Full", {"split": "popular"})


@pytest.mark.parametrize(
    ("caption", "choices", "read"),
    [
        ("A mug to the left of a plate", "left right", ("mug", "left", "plate")),
        ("A bottle of orange juice under an armchair.", "on under", ("bottle of orange juice", "under", "armchair")),
        ("A mug in front of a plate", "front behind", ("mug", "front", "plate")),
        ("Sunglasses on a chair", "on under", ("Sunglasses", "on", "chair")),
        ("A photo of an apple above the dining table", "above below", ("apple", "above", "dining table")),
        ("A photo of a girl on top of a pillow", "above below", ("girl", "above", "pillow")),
        ("A photo of a man on a horse to the right of a car", "left right on", ("man on a horse", "right", "car")),
        ("A photo of black trees behind the fence", "front behind", ("black trees", "behind", "fence")),
        ("A photo of a möbel left of a stühle", "left right", ("möbel", "left", "stühle")),
        ("A photo of a cat near a dog", "left right", None),
        ("A mug under a plate", "left right", None),
    ],
)
def test_captions_of_two(caption, choices, read):
    assert read_relation(caption, choices.split()) == read


@pytest.mark.parametrize(
    ("caption", "read"),
    [
        ("A photo of a dining table on the bottom", ("dining table", "bottom")),
        ("A photo of an orange on the left side of the picture.", ("orange", "left")),
        ("A photo of sheep at the top", ("sheep", "top")),
        ("A photo of a dog on the sofa", None),
        ("A photo of a dog behind", None),
    ],
)
def test_captions_of_one(caption, read):
    assert read_place(caption, ("left", "right", "top", "bottom")) == read


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (
            "Q? Available options: A. Northeast, B. Northwest, C. Southwest, D. Southeast.",
            ["Northeast", "Northwest", "Southwest", "Southeast"],
        ),
        ("Q? Available options:\nA. Yes\nB. No\n\nFirst, provide a concise answer. Then, elaborate.", ["Yes", "No"]),
        (
            "Q? Available options: A. Peet's Coffee, B. St. Mary's, C. X-U Souvenirs. First, provide an answer.",
            ["Peet's Coffee", "St. Mary's", "X-U Souvenirs"],
        ),
        ("Q? Options: (A) 1 (B) 2 (C) 10", ["1", "2", "10"]),
        ("Store A. is here. Q? The available options are: A: dog; B: cat", ["dog", "cat"]),
        ("Q? Options: A. only", None),
        ("Q? Options: A. same, B. Same", None),
        ("Where is it?", None),
    ],
)
def test_lists_of_options(text, options):
    read = read_options(text)
    assert read is None if options is None else list(read[1].values()) == options and "ption" not in read[0]


def test_coco_pictures_have_one_name_in_every_release():
    names = {"000000310196.jpg", "COCO_val2014_000000310196.jpg", "COCO_train2014_000000310196.jpg"}
    assert all(set(coco_names(name)) == names and coco_names(name)[0] == name for name in names)
    assert coco_names("cat.png") == ["cat.png"]


@pytest.mark.parametrize(
    "place",
    [
        "coco/val2017/{:012d}.jpg",
        "val2017/{:012d}.jpg",
        "images/{:012d}.jpg",
        "vsr/images/{:012d}.jpg",
        "coco/val2014/COCO_val2014_{:012d}.jpg",
    ],
)
def test_coco_pictures_are_found_wherever_people_keep_them(tmp_path, place):
    dump_lines(
        tmp_path / "vsr/zeroshot/test.jsonl",
        [{"image": "000000000007.jpg", "caption": "The cat is on the bed.", "label": 1, "relation": "on"}],
    )
    path = tmp_path / place.format(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture("JPEG"))
    (q,) = si.load_questions("vsr/zeroshot", root=tmp_path)
    assert q.picture == path and q.image.size == (8, 6) and q.about == ()


def test_cocoqa_options_are_answers_of_one_type(full):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        questions = si.load_questions("cocoqa", n=300, root=full)
        again = si.load_questions("cocoqa", n=10, root=full)
        other = si.load_questions("cocoqa", n=300, seed=1, root=full)
    numbers = {"one", "two", "three", "four", "five"}
    for q in questions:
        assert len(set(q.choices)) == 4 and (set(q.choices) <= numbers) == (q.meta["question_type"] == "number")
    assert [(q.id, q.choices) for q in again] == [(q.id, q.choices) for q in questions[:10]]
    assert {q.id: q.choices for q in questions}.items() & {q.id: q.choices for q in other}.items() != {
        q.id: q.choices for q in questions
    }.items()


# The genuine samples.


@needs_samples
@pytest.mark.parametrize("root", [SAMPLES, SAMPLES / "whatsup"])
def test_genuine_photographs(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        sets = [si.load_questions(f"whatsup/controlled_{x}", root=root) for x in "ab"]
    assert [len(s) for s in sets] == [8, 4]
    members = {}
    for q in [*sets[0], *sets[1]]:
        assert min(q.image.size) > 100 and q.answer_text == q.relation and q.about[0] in q.text
        members.setdefault((q.task, q.meta["set"]), set()).add(q.relation)
    assert sorted(members) == [
        ("whatsup/controlled_a", "dog|table"),
        ("whatsup/controlled_a", "mug|table"),
        ("whatsup/controlled_b", "mug|plate"),
    ]
    assert all(len(relations) == 4 for relations in members.values())


@needs_samples
def test_genuine_vsr():
    with pytest.warns(DataWarning, match="1222 of 1222 questions have no image on disk"):
        questions = si.load_questions("vsr/zeroshot", root=SAMPLES)
    lines = [json.loads(line) for line in (SAMPLES / "vsr/zeroshot/test.jsonl").read_text().splitlines()]
    assert len(questions) == len(lines) == 1222 and all(q.meta["category"] for q in questions)
    for q, line in zip(questions, lines, strict=True):
        assert (q.relation, q.answer_text == "yes", q.about) == (line["relation"], line["label"] == 1, (line["subj"], line["obj"]))
        assert (
            all(q.meta[name] == value for name, value in line.items() if name not in ("relation", "subj", "obj"))
            and line["caption"] in q.text
        )
    assert "andbag" in {q.about[0] for q in questions}


@needs_samples
def test_meta_categories_are_the_authors():
    for line in (SAMPLES / "vsr/rel_meta_category_dict.txt").read_text().splitlines():
        category, _, relations = line.partition(": ")
        wrong = {r for r in map(str.strip, relations.split(",")) if CATEGORY[r] != category}
        assert wrong <= {"among"}


@needs_samples
def test_genuine_pope():
    with pytest.warns(DataWarning, match="3000 of 3000"):
        questions = si.load_questions("pope/random", root=SAMPLES)
    assert len(questions) == 3000 and len({q.group for q in questions}) == 500
    assert Counter(q.answer_text for q in questions) == {"yes": 1500, "no": 1500}
    assert all(len(q.about) == 1 and q.about[0] in q.text for q in questions) and questions[0].about == ("snowboard",)


# Splits and samples.


@no_pictures
@pytest.mark.parametrize("name", ["whatsup/controlled_a", "coco_qa/one", "vg_qa/two", "pope/random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_picture(full, name, seed):
    whole = si.load_questions(name, root=full, seed=seed)
    parts = {split: si.load_questions(name, split, root=full, seed=seed) for split in ("train", "validation", "test")}
    assert sorted(q.id for part in parts.values() for q in part) == sorted(q.id for q in whole)
    key = (lambda q: q.meta["set"]) if name.startswith("whatsup") else (lambda q: q.group)
    keys = {split: {key(q) for q in part} for split, part in parts.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"] and not keys["validation"] & keys["test"]


def test_splits_have_their_shares_and_hang_on_the_seed():
    keys = [f"coco/{i:012d}" for i in range(4000)]
    counts = Counter(split_of(k, 0) for k in keys)
    assert chisquare([counts["train"], counts["validation"], counts["test"]], [2000, 400, 1600]).pvalue > 1e-3
    moved = sum(split_of(k, 0) != split_of(k, 1) for k in keys) / len(keys)
    assert abs(moved - (1 - 0.5**2 - 0.1**2 - 0.4**2)) < 0.05


@no_pictures
def test_a_smaller_sample_begins_a_larger_one(full):
    small, large = (si.load_questions("pope/random", "test", n=n, root=full) for n in (20, 60))
    assert [(q.id, q.choices) for q in small] == [(q.id, q.choices) for q in large[:20]]
    other = si.load_questions("pope/random", "test", n=20, seed=1, root=full)
    assert {q.id for q in other} != {q.id for q in small}
    with pytest.warns(DataWarning, match="has 412 questions, not 500; all are taken"):
        assert len(si.load_questions("whatsup/controlled_a", n=500, root=full)) == 412


@no_pictures
def test_right_answers_are_at_every_place_alike(full):
    for name, places in (("whatsup/controlled_a", 4), ("coco_qa/one", 4), ("cocoqa", 4), ("spatialeval/vqa/grid", 4), ("vg_qa/two", 6)):
        questions = si.load_questions(name, n=400, root=full) if name == "cocoqa" else si.load_questions(name, root=full)
        assert chisquare([sum(q.answer == k for q in questions) for k in range(places)]).pvalue > 1e-3, name
    assert {q.choices for q in si.load_questions("pope/random", root=full)} == {("yes", "no")}
    order = {seed: [q.choices for q in si.load_questions("whatsup/controlled_a", root=full, seed=seed)] for seed in (0, 1)}
    assert 10 < sum(a == b for a, b in zip(*order.values(), strict=True)) < 40  # 412 / 24 = 17 by chance


def test_the_root_may_come_from_the_environment(full, monkeypatch):
    monkeypatch.setenv("SCALE_INTERP_DATA", str(full))
    assert len(si.load_questions("whatsup/controlled_b")) == 408
    monkeypatch.delenv("SCALE_INTERP_DATA")
    monkeypatch.chdir(full / "whatsup")
    assert len(si.load_questions("whatsup/controlled_b", root=".")) == 408


# Words.


def test_the_users_words_replace_ours(full):
    words = "{caption} True?"
    with pytest.warns(DataWarning, match="no image on disk"):
        assert si.load_questions("vsr/zeroshot", n=1, root=full, template=words)[0].text.startswith("The cat is ")
    (q,) = si.load_questions("whatsup/controlled_a", n=1, root=full, template="{{{subject}}} / {object}")
    assert q.text == f"{{{q.about[0]}}} / {q.about[1]}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{caption}?", r"asks for \{caption\}, which this set lacks; use \{subject\}, \{object\}, \{options\}"),
        ("{subject.__class__}", "asks for"),
        ("{}", "asks for"),
        ("{subject", "cannot be read"),
    ],
)
def test_unknown_places_in_words_are_refused(full, template, message):
    with pytest.raises(DataError, match=message):
        si.load_questions("whatsup/controlled_a", root=full, template=template)


def test_the_documentation_lists_every_set_and_template():
    page = (ROOT / "docs/data.md").read_text()
    for entry in CATALOG.values():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{entry.name}` |")), "")
        counts = ", ".join(f"{c:,}" if s == "all" else f"{s} {c:,}" for s, c in entry.counts.items())
        assert row == f"| `{entry.name}` | {entry.asks} | {counts} | {entry.licence} | <{entry.url}> | {entry.template} |"
    for name, template in TEMPLATES.items():
        words = template.text.replace("\n", "⏎")
        assert f"| {name} | `{words}` | {', '.join(f'`{{{f}}}`' for f in template.fields)} |" in page


def test_the_command_lists_what_is_where(full, tmp_path):
    shown = CliRunner().invoke(app, ["data", "--root", str(full)], env={"COLUMNS": "400"}).output
    assert all(entry.name in shown for entry in CATALOG.values()) and "78,736" in shown and "missing" not in shown
    write_controlled(tmp_path, "controlled_images")
    records = json.loads((tmp_path / "data/controlled_images_dataset.json").read_text())
    dump(tmp_path / "data/controlled_images_dataset.json", records[:8])
    dump(tmp_path / "coco_qa_one_obj.json", {})
    shown = CliRunner().invoke(app, ["data", "--root", str(tmp_path)], env={"COLUMNS": "400"}).output
    assert "8 of 412" in shown and "missing: zeroshot/test.jsonl" in shown and "a dict, not the list" in shown


# Users' own sets.


def test_own_questions_keep_all_they_say(tmp_path):
    (tmp_path / "p").mkdir()
    for name in ("ä.png", "b.png"):
        (tmp_path / "p" / name).write_bytes(picture())
    box = {"boxes": {"猫": [0, 0, 8, 6]}, "about": ["猫"]}
    name = write_jsonl(
        tmp_path,
        {
            "image": "p/ä.png",
            "question": "猫はどこ？",
            "choices": ["左", "右"],
            "answer": "右",
            "id": "eins",
            "meta": {"a": 1},
            "difficulty": 3,
        }
        | box,
        {"image": ["p/ä.png", "p/b.png"], "answer": 2, "relation": "above", "task": "mine", "group": "g"},
        {"choices": ["yes", "no"], "answer": "no"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b, c = si.load_questions(name)
    assert (a.id, a.answer_text, a.boxes, a.about, dict(a.meta)) == ("eins", "右", {"猫": (0, 0, 8, 6)}, ("猫",), {"difficulty": 3, "a": 1})
    assert a.group == "jsonl/p/ä.png" and a.task == name and "猫はどこ？" in a.text and a.image.size == (8, 6)
    assert (b.answer_text, b.relation, b.task, b.group, len(b.images)) == ("above", "above", "mine", "g", 2)
    assert (c.id, c.picture, c.choices, c.group) == ("mine/3", None, ("yes", "no"), "mine/3")
    assert len(si.load_questions("jsonl:mine.jsonl", root=tmp_path)) == 3
    assert si.load_questions(name, template="{question}")[1].text == "Where is it?"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": " "}, "'question' is ' '; give text"),
        ({"question": 3}, "'question' is 3"),
        ({"choices": "left"}, "give a list of texts"),
        ({"choices": ["left", 2]}, "give a list of texts"),
        ({"choices": ["left"]}, "at least two"),
        ({"choices": ["left", "left"]}, "all different"),
        ({"answer": "up"}, "answer 'up' is none of the choices"),
        ({"answer": 4}, "answer 4 is none"),
        ({"answer": True}, "answer True is none"),
        ({"answer": None}, "answer None is none"),
        ({"image": 3}, "'image' is 3"),
        ({"image": "../secret.png"}, "leaves the set's folder"),
        ({"image": "/etc/passwd"}, "leaves the set's folder"),
        ({"image": ["a.png", "b/../../c.png"]}, "leaves the set's folder"),
        ({"image": "..\\secret.png"}, "leaves the set's folder"),
        ({"image": "C:/secret.png"}, "leaves the set's folder"),
        ({"boxes": [1, 2, 3, 4]}, "'boxes' is"),
        ({"boxes": {"cat": [1, 2, 3]}}, "box 'cat'"),
        ({"boxes": {"cat": [5, 0, 2, 6]}}, "box 'cat'"),
        ({"boxes": {"cat": [-1, 0, 2, 6]}}, "box 'cat'"),
        ({"boxes": {"cat": [0, 0, 9, 6]}, "image": "a.png"}, r"box 'cat' ends at \(9, 6\), outside .*a.png of 8 x 6"),
        ({"boxes": {"cat": [0, 0, 2, 6]}}, "it has boxes but no image"),
        ({"about": "cat"}, "'about' is 'cat'"),
        ({"meta": 3}, "'meta' is 3"),
        ({"id": 7}, "'id' is 7"),
    ],
)
def test_records_out_of_form_name_their_line(tmp_path, record, message):
    (tmp_path / "a.png").write_bytes(picture())
    name = write_jsonl(tmp_path, {}, record)
    with pytest.raises(DataError, match=rf"mine.jsonl, line 2.*{message}"):
        si.load_questions(name)


# What users get wrong.


def controlled(root, *records):
    dump(root / "whatsup/controlled_images_dataset.json", list(records))
    return si.load_questions("whatsup/controlled_a", root=root)


def captions(first="on"):
    return [f"A mug {r} a table" for r in dict.fromkeys((first, "on", "under", "to the left of", "to the right of"))]


def mug(first="on", **changed):
    return {"image_path": f"data/controlled_images/mug_{first}_table.jpeg", "caption_options": captions(first)} | changed


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([mug(caption_options=captions()[:3])], "record 1: caption_options holds 3 captions, not 4"),
        ([mug(), mug("under", caption_options=["A mug"] * 4)], "record 2: caption_options holds 1 captions"),
        ([mug(caption_options="A mug on a table")], "record 1: 'caption_options' is"),
        ([mug(image_path=None)], "record 1: 'image_path' is None"),
        ([mug(image_path="../../etc/passwd")], "leaves the set's folder"),
        ([mug(image_path="/etc/passwd")], "leaves the set's folder"),
        (["mug"], "record 1: a str, not a JSON object"),
        ([mug(), mug("under"), mug()], "record 3: the id 'whatsup/controlled_a/mug_on_table' is that of .*record 1 too"),
        ([], "whatsup/controlled_a is empty, with no questions in it"),
    ],
)
def test_broken_records_of_whatsup(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        controlled(tmp_path, *records)


def test_records_that_cannot_be_asked_are_counted(tmp_path):
    said = ["A mug near a table", *captions()[1:]]
    with pytest.warns(DataWarning) as caught:
        questions = controlled(tmp_path, mug(), mug("under", caption_options=said))
    assert len(questions) == 1
    assert any(
        re.search("1 of 2 records are left out, its true caption names no relation of the set; the first is .*record 2", str(w.message))
        for w in caught
    )


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("whatsup/controlled_a", "whatsup/controlled_images_dataset.json", "[\n{]", r"controlled_images_dataset.json, line 2: no JSON"),
        ("whatsup/controlled_a", "whatsup/controlled_images_dataset.json", "{}", "a dict, not the list of records"),
        ("coco_qa/one", "whatsup/coco_qa_one_obj.json", '[[1, "A photo of a cat on the left"]]', "record 1: 2 entries, not"),
        ("coco_qa/one", "whatsup/coco_qa_one_obj.json", '[["x", "a", "b"]]', "'x' is no image number"),
        ("coco_qa/one", "whatsup/coco_qa_one_obj.json", '[[1, "a", null]]', "give two texts"),
        ("vsr/zeroshot", "vsr/zeroshot/test.jsonl", '{"image": "1.jpg"', "test.jsonl, line 1: no JSON"),
        (
            "vsr/zeroshot",
            "vsr/zeroshot/test.jsonl",
            '\n{"image": "1.jpg", "caption": "a", "relation": "on", "label": 2}',
            "line 2: label 2",
        ),
        (
            "vsr/zeroshot",
            "vsr/zeroshot/test.jsonl",
            '{"image": "1.jpg", "caption": "a", "relation": "on", "label": true}',
            "line 1: label True",
        ),
        ("vsr/zeroshot", "vsr/zeroshot/test.jsonl", '{"image": "1.jpg", "caption": "a", "relation": "on"}', "line 1: label None"),
        (
            "vsr/zeroshot",
            "vsr/zeroshot/test.jsonl",
            '{"image": "../1.jpg", "caption": "a", "relation": "on", "label": 1}',
            "leaves the set's folder",
        ),
        ("pope/random", "pope/coco_pope_random.json", json.dumps(pope_line(0) | {"label": "Yes"}), "label 'Yes'; give 'yes' or 'no'"),
        (
            "pope/random",
            "pope/coco_pope_random.json",
            f"{json.dumps(pope_line(0))}\n{json.dumps(pope_line(0))}",
            "the id 'pope/random/1' is that of .*line 1 too",
        ),
        ("pope/random", "pope/coco_pope_random.json", "[1]", "a list, not a JSON object"),
        ("cocoqa", "cocoqa/test/questions.txt", "what ?\n", "answers.txt is missing"),
    ],
)
def test_broken_files_are_named(tmp_path, name, file, content, message):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        si.load_questions(name, root=tmp_path)


def test_cocoqa_files_must_match_line_by_line(tmp_path):
    (tmp_path / "cocoqa/test").mkdir(parents=True)
    for name, content in (("questions", "a ?\nb ?\n"), ("answers", "x\ny\n"), ("img_ids", "1\n2\n"), ("types", "0\n")):
        (tmp_path / f"cocoqa/test/{name}.txt").write_text(content)
    with pytest.raises(DataError, match=r"do not match line by line: .*'types.txt': 1"):
        si.load_questions("cocoqa", root=tmp_path)
    (tmp_path / "cocoqa/test/types.txt").write_text("0\n7\n")
    with pytest.raises(DataError, match=r"line 2: image '2', type '7'"):
        si.load_questions("cocoqa", root=tmp_path)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b'{"question": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"mine.jsonl, line 1: not UTF-8"):
        si.load_questions(f"jsonl:{tmp_path / 'mine.jsonl'}")


def test_a_missing_file_is_one_message(tmp_path, no_hub):
    with pytest.raises(DataError) as caught:
        si.load_questions("vsr/random", root=tmp_path)
    for part in (
        "random/test.jsonl",
        str(tmp_path / "vsr"),
        "https://github.com/cambridgeltl/visual-spatial-reasoning",
        "cambridgeltl/vsr_random",
        "no way to the hub",
    ):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"controlled_images_dataset.json.*amitakamath/whatsup_vlms.*no official copy on the hub"):
        si.load_questions("whatsup/controlled_a", root=tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        si.load_questions("jsonl:none.jsonl", root=tmp_path)


def test_a_missing_part_of_a_table(tmp_path):
    (tmp_path / "spatialeval/vqa").mkdir(parents=True)
    (tmp_path / "spatialeval/vqa/test-00000-of-00002.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 2 parts"):
        si.load_questions("spatialeval/vqa/map", root=tmp_path)
    (tmp_path / "spatialeval/vqa/test-00001-of-00002.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"test-00000-of-00002.parquet: no table that can be read"):
        si.load_questions("spatialeval/vqa/map", root=tmp_path)


def test_tables_without_options_or_pictures(tmp_path, monkeypatch):
    good, bare, wrong = spatialeval_rows("vqa")[:3]
    rows = [good | {"image": None}, bare | {"text": "Where?"}, wrong | {"oracle_option": "E", "oracle_answer": "Up"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: spatialeval_table("vqa", rows))
    with pytest.warns(DataWarning) as caught:
        (q,) = si.load_questions("spatialeval/vqa/map", root=tmp_path)
    assert ["lists no options" in str(w.message) for w in caught] == [True, False] and "none of its options" in str(caught[1].message)
    with pytest.raises(DataError, match="row 1: the row holds no image"):
        _ = q.image


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda root: si.load_questions("whatsup/controlled_c", root=root),
            "unknown data set 'whatsup/controlled_c': choose from .*whatsup/controlled_a",
        ),
        (lambda root: si.load_questions("whatsup/controlled_a", "dev", root=root), "unknown split 'dev'.*train, validation, test"),
        (
            lambda root: si.load_questions("spatialeval/vqa/map", "train", root=root),
            r"unknown split 'train' of .*: choose from test \(its authors publish no other",
        ),
        (lambda root: si.load_questions("cocoqa", "validation", root=root), "unknown split 'validation' of .*: choose from train, test"),
        (lambda root: si.load_questions("whatsup/controlled_a", n=0, root=root), "at least one"),
        (lambda root: si.load_questions("whatsup/controlled_a", seed=-1, root=root), "give 0 or more"),
        (lambda root: si.load_questions("scenes/relation", root=root), "is rendered"),
        (lambda root: si.load_questions("scenes/relation", template="x"), "is rendered"),
        (lambda root: si.load_questions("boxes/place"), "give the path"),
    ],
)
def test_wrong_requests(full, call, message):
    with pytest.raises(DataError, match=message):
        call(full)


def test_an_empty_split(tmp_path):
    controlled_set = [mug(), mug("under")]
    dump(tmp_path / "controlled_images_dataset.json", controlled_set)
    empty = next(s for s in ("train", "validation", "test") if s != split_of("whatsup/mug|table", 0))
    with pytest.raises(DataError, match=f"split '{empty}' of 2 records is empty"):
        si.load_questions("whatsup/controlled_a", empty, root=tmp_path)


# Pictures.


@pytest.mark.parametrize("missing", [1, 400])
def test_missing_pictures_are_counted_and_opening_one_raises(tmp_path, missing):
    for i in range(missing, 400):
        (tmp_path / f"{i}.png").write_bytes(picture())
    name = write_jsonl(tmp_path, *({"image": f"{i}.png"} for i in range(400)))
    with pytest.warns(DataWarning, match=rf"{missing} of 400 questions have no image on disk, the first should be .*0.png"):
        questions = si.load_questions(name)
    with pytest.raises(DataError, match=r"no image at .*0\.png"):
        _ = questions[0].image
    assert missing == 400 or questions[1].image.size == (8, 6)


def test_damaged_pictures_name_their_file(tmp_path, monkeypatch):
    jpeg = picture("JPEG", (200, 200))
    for name, content in (
        ("cut.jpeg", jpeg[: len(jpeg) // 2]),
        ("none.jpeg", b"hello"),
        ("empty.jpeg", b""),
        ("large.png", picture(size=(40, 30))),
    ):
        (tmp_path / name).write_bytes(content)
    name = write_jsonl(tmp_path, *({"image": image} for image in ("cut.jpeg", "none.jpeg", "empty.jpeg", "large.png")))
    questions = si.load_questions(name)
    for q in questions[:3]:
        with pytest.raises(DataError, match=rf"{q.picture} is damaged or not an image"):
            _ = q.image
    monkeypatch.setattr(question_module, "LARGEST", 1000)
    with pytest.raises(DataError, match=r"large.png has 40 x 30 pixels, more than 1,000; scale it down"):
        _ = questions[3].image


def test_a_picture_of_20000_pixels_square(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    (q,) = si.load_questions(write_jsonl(tmp_path, {"image": "huge.png"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"huge.png has more than 100,000,000 pixels"):
            _ = q.image


def test_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"is a link to .*secret.png, outside"):
        si.load_questions(write_jsonl(tmp_path / "set", {"image": "a.png"}))
    (tmp_path / "set/real.png").write_bytes(picture())
    (tmp_path / "set/b.png").symlink_to(tmp_path / "set/real.png")
    assert si.load_questions(write_jsonl(tmp_path / "set", {"image": "b.png"}))[0].image.size == (8, 6)


def test_a_linked_coco_folder_is_the_users_own_choice(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/000000000100.jpg").write_bytes(picture("JPEG"))
    dump(tmp_path / "root/whatsup/coco_qa_one_obj.json", [[100, "A photo of a cat on the left", "A photo of a cat on the right"]])
    (tmp_path / "root/coco").mkdir()
    (tmp_path / "root/coco/val2017").symlink_to(tmp_path / "elsewhere")
    (q,) = si.load_questions("coco_qa/one", root=tmp_path / "root")
    assert q.image.size == (8, 6)


def sample_of_100_000(name, root=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return si.load_questions(name, "test", n=50, root=root)


@pytest.mark.full
def test_100_000_questions_are_sampled_in_bounded_memory_without_opening_a_picture(tmp_path, monkeypatch):
    """The file has 26 MB."""
    (tmp_path / "a.png").write_bytes(picture())
    name = write_jsonl(tmp_path, *({"image": "a.png", "group": str(i), "filler": "x" * 100} for i in range(100_000)))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a picture was opened"))
    tracemalloc.start()
    try:
        questions = sample_of_100_000(name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(questions) == 50 and peak < 8e6, peak


@pytest.mark.full
def test_100_000_pope_questions_are_sampled_without_opening_a_picture(tmp_path, monkeypatch):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/COCO_val2014_000000000000.jpg").write_bytes(picture("JPEG"))
    dump_lines(tmp_path / "pope/coco_pope_random.json", (pope_line(i) | {"question_id": i} for i in range(100_000)))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a picture was opened"))
    questions = sample_of_100_000("pope/random", tmp_path)
    assert len(questions) == 50 and len({q.id for q in questions}) == 50


# As harnesses ask.


@no_pictures
def test_harnesses_ask_pope_in_its_own_words_or_with_llavas_line(full):
    ours, plain, single = (si.load_questions("pope/random", n=20, root=full, template=t) for t in (None, "vlmevalkit", "lmms-eval"))
    for own, bare, line in zip(ours, plain, single, strict=True):
        assert bare.text.endswith("?") and own.text.startswith(bare.text) and own.text != bare.text
        assert line.text == f"{bare.text}\nAnswer the question using a single word or phrase."
        assert (own.id, own.choices, own.answer) == (bare.id, bare.choices, bare.answer) == (line.id, line.choices, line.answer)


@no_pictures
def test_vlmevalkit_asks_vsr_with_yes_and_no_and_spatialeval_by_letter(full):
    statement = si.load_questions("vsr/zeroshot", n=3, root=full, template="vlmevalkit")[0]
    assert statement.choices == ("yes", "no") and statement.text.endswith('" Please answer yes or no.')
    asked = si.load_questions("spatialeval/vqa/map", n=5, root=full, template="vlmevalkit")
    words = {q.id: q for q in si.load_questions("spatialeval/vqa/map", root=full)}
    for q in asked:
        lines = [f"{letter}. {option}" for letter, option in q.meta["options"].items()]
        before = words[q.id].text.split("\nAnswer with")[0]
        assert q.text == "\n".join([f"Question: {before}", "Options:", *lines, "Please select the correct answer from the options above."])
        assert q.choices == ("A", "B", "C", "D") and q.answer_words == words[q.id].answer_text


@no_pictures
def test_a_harness_has_its_own_sets_only(full):
    with pytest.raises(DataError, match="'vlmevalkit' is for POPE, VSR, SpatialEval, not for whatsup/controlled_a"):
        si.load_questions("whatsup/controlled_a", root=full, template="vlmevalkit")
    with pytest.raises(DataError, match="'lmms-eval' is for POPE, not for vsr/zeroshot"):
        si.load_questions("vsr/zeroshot", root=full, template="lmms-eval")
