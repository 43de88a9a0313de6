"""Folders in the authors' own form and size, with made-up content: what a reader meets on a user's disk."""

import io
import json

import datasets
import numpy as np
from PIL import Image

COUNTS = {
    ("whatsup/controlled_a", "all"): 412,
    ("whatsup/controlled_b", "all"): 408,
    ("coco_qa/one", "all"): 2247,
    ("coco_qa/two", "all"): 440,
    ("vg_qa/one", "all"): 1160,
    ("vg_qa/two", "all"): 291,
    ("vsr/random", "train"): 7680,
    ("vsr/random", "validation"): 1097,
    ("vsr/random", "test"): 2195,
    ("vsr/zeroshot", "train"): 3489,
    ("vsr/zeroshot", "validation"): 340,
    ("vsr/zeroshot", "test"): 1222,
    **{(f"spatialeval/{form}/{kind}", "test"): 1500 for form in ("vqa", "vtqa", "tqa") for kind in ("map", "maze", "grid")},
    **{(f"spatialeval/{form}/real", "test"): 135 for form in ("vqa", "vtqa", "tqa")},
    ("cocoqa", "train"): 78736,
    ("cocoqa", "test"): 38948,
    **{(f"pope/{kind}", "all"): 3000 for kind in ("random", "popular", "adversarial")},
}
CONTROLLED = {
    "controlled_images": (103, {"left_of": "to the left of", "right_of": "to the right of", "on": "on", "under": "under"}),
    "controlled_clevr": (
        102,
        {"left_of": "to the left of", "right_of": "to the right of", "in-front_of": "in front of", "behind": "behind"},
    ),
}
SKEWED = {"to the right of": 137, "to the left of": 127, "in front of": 19, "behind": 5, "above": 3}
OPPOSITE = {
    "to the right of": "to the left of",
    "to the left of": "to the right of",
    "in front of": "behind",
    "behind": "in front of",
    "above": "below",
    "below": "above",
}


def picture(kind="PNG", size=(8, 6), colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def photograph(name):
    """An image of its own for each name: copies would be one image."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def dump_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")


def write_controlled(root, file):
    pairs, relations = CONTROLLED[file]
    records = []
    for number in range(pairs):
        subject, other = f"thing-{number}", ("table", "chair", "armchair")[number % 3]
        said = {r: f"A thing {number} {phrase} a{'n' * (other[0] == 'a')} {other}" for r, phrase in relations.items()}
        for relation in relations:
            path = f"data/{file}/{subject}_{relation}_{other}.jpeg"
            records.append({"image_path": path, "caption_options": [said[relation], *(c for r, c in said.items() if r != relation)]})
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(photograph(path))
    dump(root / f"data/{file}_dataset.json", records)


def write_captions(root, source):
    one = {"coco": 2247, "vg": 1160}[source]
    places = ("left", "right", "top", "bottom")
    records = [
        [100 + i // 2, f"A photo of a potted plant on the {places[i % 4]}", f"A photo of a potted plant on the {places[i % 4 ^ 1]}"]
        for i in range(one)
    ]
    dump(root / f"data/{source}_qa_one_obj.json", records)
    phrases = (
        ["to the left of", "to the right of", "above", "below"] * 110
        if source == "coco"
        else [p for p, count in SKEWED.items() for _ in range(count)]
    )
    two = [
        [100 + i // 2, f"A photo of a dining table {p} an orange", f"A photo of a dining table {OPPOSITE[p]} an orange"]
        for i, p in enumerate(phrases)
    ]
    dump(root / f"data/{source}_qa_two_obj.json", two)


def write_vsr(root, way, file, count):
    relations = (("left of", 1), ("at the edge of", 0), ("facing", 1))
    lines = (
        {
            "image": f"{i // 2:012d}.jpg",
            "image_link": f"http://images.cocodataset.org/train2017/{i // 2:012d}.jpg",
            "caption": f"The cat is {relations[i % 3][0]} the dog.",
            "label": relations[i % 3][1],
            "relation": relations[i % 3][0],
            "subj": "cat",
            "obj": "dog",
            "annotator_id": 2,
            "vote_true_validator_id": "[18, 2]",
            "vote_false_validator_id": "[]",
        }
        for i in range(count)
    )
    dump_lines(root / f"{way}/{file}.jsonl", lines)


def spatialeval_rows(form):
    """The rows of a config; questions of one type follow each other, three ask about one scene."""
    asked = {
        "spatialmap": (
            "In which direction is A Shop relative to B's Bar?",
            "Which object is in the Southwest of B's Bar?",
            "How many objects are in the West?",
        ),
        "mazenav": ("How many right turns are there?", "How many turns are there?", "Is the exit below the start?"),
        "spatialgrid": ("How many blocks contain dog?", "What is at the top-left corner?", "What is at the first row, second column?"),
        "spatialreal": ("How many chairs are left of the table?",),
    }
    listed = {
        "spatialmap": ("Northeast", "Northwest", "Southwest", "Southeast"),
        "mazenav": ("4", "8", "2", "7"),
        "spatialgrid": ("dog", "cat", "rabbit", "giraffe"),
        "spatialreal": ("1", "2", "3", "4"),
    }
    png, rows = picture(), []
    for task, questions in asked.items():
        for number, question in enumerate(questions):
            for scene in range(135 if task == "spatialreal" else 500):
                options = ("Yes", "No") if question.startswith("Is ") else listed[task]
                right = scene % len(options)
                said = ", ".join(f"{'ABCD'[k]}. {o}" for k, o in enumerate(options))
                row = {
                    "id": f"{task}.{form}.{2000 + scene}.{number}",
                    "text": f"A described scene.\n\nQuestion: {question} Available options: {said}.",
                    "oracle_answer": options[right],
                    "oracle_option": "ABCD"[right],
                    "oracle_full_answer": f"{'ABCD'[right]}. {options[right]}",
                }
                rows.append(row if form == "tqa" else row | {"image": {"bytes": png, "path": f"{scene}.png"}})
    return rows


def spatialeval_table(form, rows=None):
    fields = {name: datasets.Value("string") for name in ("id", "text", "oracle_answer", "oracle_option", "oracle_full_answer")}
    features = datasets.Features(fields | ({} if form == "tqa" else {"image": datasets.Image()}))
    return datasets.Dataset.from_list(rows or spatialeval_rows(form), features=features)


def write_spatialeval(root, form):
    table = spatialeval_table(form)
    parts = 1 if form == "tqa" else 2
    (root / form).mkdir(parents=True)
    for part in range(parts):
        table.shard(parts, part, contiguous=True).to_parquet(root / form / f"test-{part:05d}-of-{parts:05d}.parquet")


ANSWERS = ("dog cat bus man bird", "two three four one five", "red green blue white black", "room street beach kitchen bowl")


def cocoqa_answer(i):
    return ANSWERS[i % 4].split()[i // 4 % 5]


def write_cocoqa(root, split, count):
    lines = {
        "questions.txt": (f"what is thing number {i} ?" for i in range(count)),
        "answers.txt": map(cocoqa_answer, range(count)),
        "img_ids.txt": (str(i // 2) for i in range(count)),
        "types.txt": (str(i % 4) for i in range(count)),
    }
    (root / split).mkdir(parents=True)
    for name, content in lines.items():
        (root / split / name).write_text("".join(f"{line}\n" for line in content))


def pope_line(i):
    label = ("yes", "no")[i % 2]
    return {"question_id": i + 1, "image": f"COCO_val2014_{i // 6:012d}.jpg", "text": "Is there an apple in the image?", "label": label}


def write_all(root):
    """Every set at its full size, each in a folder of its name."""
    for file in CONTROLLED:
        write_controlled(root / "whatsup", file)
    for source in ("coco", "vg"):
        write_captions(root / "whatsup", source)
    for (name, split), count in COUNTS.items():
        if name.startswith("vsr/"):
            write_vsr(root / "vsr", name[4:], {"validation": "dev"}.get(split, split), count)
        elif name.startswith("pope/"):
            dump_lines(root / f"pope/coco_{name.replace('/', '_')}.json", map(pope_line, range(count)))
        elif name == "cocoqa":
            write_cocoqa(root / name, split, count)
    for form in ("vqa", "vtqa", "tqa"):
        write_spatialeval(root / "spatialeval", form)
    return root
