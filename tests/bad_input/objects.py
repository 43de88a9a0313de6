"""Questions, contrasts, edits, adapters and results made or asked wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import scale_interp as si
from scale_interp.errors import ArgumentError, DataError, EditError, LeakError, ModelError, ScaleInterpError
from tests.bad_input.kind import Kind
from tests.bad_input.saved import FIVE, drawn, image_map, lens

CHOICES = ("left", "right")


def question(mistake: str, says: str, **changed: Any) -> Kind:
    fields: dict[str, Any] = {"text": "Where is it?", "choices": CHOICES, "answer": 0} | changed
    return Kind("si.Question", mistake, DataError, says, lambda room: si.Question(**fields))


def box(mistake: str, value: Any) -> Kind:
    return question(f"a box {mistake}", "box 'cat'", boxes={"cat": value})


QUESTIONS = (
    question("no text", "the text is empty", text=""),
    question("a blank text", "the text is empty", text=" \n"),
    question("a text that is a number", "text=3 is a int", text=3),
    question("a text that is bytes", "is a bytes", text=b"Where?"),
    question("an id that is a number", "id=7 is a int", id=7),
    question("a group that is None", "group=None", group=None),
    question("a task that is a list", "task=", task=["a"]),
    question("a relation that is a number", "relation=3", relation=3),
    question("choices that are a text", "are not a list", choices="left"),
    question("choices that are a number", "are not a list", choices=2),
    question("choices that are None", "are not a list", choices=None),
    question("no choices", "at least two", choices=()),
    question("one choice", "at least two", choices=("left",)),
    question("a choice twice", "all different", choices=("left", "left")),
    question("a blank choice", "without text", choices=("left", " ")),
    question("a choice that is a number", "without text", choices=("left", 2)),
    question("a choice that is a list", "without text", choices=(["left"], ["right"])),
    question("an answer out of range", "no index of its 2", answer=2),
    question("a negative answer", "no index", answer=-1),
    question("an answer in words", "no index", answer="left"),
    question("an answer that is a truth value", "no index", answer=True),
    question("an answer that is a fraction", "no index", answer=1.0),
    question("an answer that is None", "no index", answer=None),
    question("about is a text", "no list of names", about="cat"),
    question("about is a number", "no list of names", about=3),
    question("about holds a number", "no list of names", about=("cat", 3)),
    question("meta is a list", "meta is a list", meta=[1]),
    question("boxes are a list", "boxes is a list", boxes=[1, 2, 3, 4]),
    box("of three numbers", (1, 2, 3)),
    box("that is a text", "1234"),
    box("with a text", (1, 2, 3, "4")),
    box("that is not finite", (1, 2, float("nan"), 4)),
    box("of infinite size", (0, 0, float("inf"), 4)),
    box("upside down", (1, 5, 3, 4)),
    box("without width", (3, 1, 3, 4)),
    Kind("si.Contrast", "a text for a question", DataError, "give two Questions", lambda room: si.Contrast(room.qs[0], "other")),
    Kind("si.Contrast", "the same answer", DataError, "the answer", lambda room: si.Contrast(room.qs[0], room.qs[0])),
    Kind("si.Contrast", "other choices", DataError, "choices differ", lambda room: si.Contrast(room.qs[0], room.other[0])),
    Kind("si.CogQuestion", "no steps", DataError, "at least one", lambda room: si.CogQuestion(room.qs[0], ())),
    Kind("si.CogQuestion", "a step that is no pair", DataError, "not pairs", lambda room: si.CogQuestion(room.qs[0], (room.qs[0],))),
    Kind("si.CogQuestion", "a step of words", DataError, "give a Question", lambda room: si.CogQuestion(room.qs[0], (("a", "b"),))),
    Kind("si.CogQuestion", "a blank function", DataError, "no function", lambda room: si.CogQuestion(room.qs[0], ((room.qs[0], " "),))),
    Kind(
        "si.CogQuestion",
        "a function that is a number",
        DataError,
        "no function",
        lambda room: si.CogQuestion(room.qs[0], ((room.qs[0], 3),)),
    ),
    Kind(
        "si.CogQuestion", "a step about another picture", DataError, "share", lambda room: si.CogQuestion(room.qs[0], ((room.qs[1], "f"),))
    ),
    Kind("si.CogQuestion", "a text for a question", DataError, "give a Question", lambda room: si.CogQuestion("a", ((room.qs[0], "f"),))),
    Kind("si.contrasts", "questions that cannot be paired", DataError, "no contrast", lambda room: si.contrasts(room.other)),
    Kind("si.contrasts", "an unknown change", DataError, "choose 'mirror'", lambda room: si.contrasts(room.qs, "flip")),
    Kind(
        "si.cog_questions",
        "an unknown kind of step",
        DataError,
        "is not a kind of step",
        lambda room: si.cog_questions(taxonomy={"smell": "a"}),
    ),
    Kind("si.cog_questions", "an empty taxonomy", DataError, "is not a kind of step", lambda room: si.cog_questions(taxonomy={})),
    Kind("si.cog_questions", "more than scenes differ", DataError, "1 to 1,000,000", lambda room: si.cog_questions(n=10**9)),
)


def edit(mistake: str, says: str, make: Callable[[], Any]) -> Kind:
    return Kind("si.Edit", mistake, EditError, says, lambda room: make())


def attention(mistake: str, says: str, *args: Any, **kwargs: Any) -> Kind:
    return Kind("si.AttentionEdit", mistake, EditError, says, lambda room: si.AttentionEdit(*args, **kwargs))


def run(mistake: str, says: str, make: Callable[[], Any], error: type[Exception] = EditError) -> Kind:
    return Kind("si.run_edits", mistake, error, says, lambda room: si.run_edits(room.vlm, room.qs, make()))


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


EDITS = (
    edit("nothing", "give at least one", lambda: si.Edit()),
    edit("a scale of two axes", "has shape", lambda: si.Edit(scale=ones(6, 8))),
    edit("a shift of three axes", "has shape", lambda: si.Edit(shift=ones(6, 8, 16))),
    edit("an mlp_scale of one axis", "has shape", lambda: si.Edit(mlp_scale=ones(6))),
    edit("no variants", "at least 1", lambda: si.Edit(scale=ones(0, 6, 8))),
    edit("parts of other numbers of variants", "the same N", lambda: si.Edit(scale=ones(2, 6, 8), mlp_scale=ones(3, 6))),
    edit("an unknown scope", "choose 'last'", lambda: si.Edit(scale=ones(1, 6, 8), scope="all")),
    edit("scaling of a head out of range", "out of range", lambda: si.Edit.scaling([(6, 0)], 2.0, 6, 8)),
    edit("complex numbers", "real ones", lambda: si.Edit(scale=ones(1, 6, 8) * 1j)),
    edit("scaling of a part of a head", "two whole numbers", lambda: si.Edit.scaling([(1.5, 0)], 2.0, 6, 8)),
    edit("no heads or MLPs to restrict to", "nothing of this edit", lambda: si.Edit(attn_scale=ones(1, 6)).restrict([(0, 0)])),
    edit("scaling of what is no head", "not a .layer, head. pair", lambda: si.Edit.scaling(["a"], 2.0, 6, 8)),
    edit(
        "composing edits of other scope",
        "cannot compose",
        lambda: si.Edit(ones(1, 6, 8)).compose(si.Edit(ones(1, 6, 8), scope="each_new_token")),
    ),
    edit("a stack of none", "give at least one", lambda: si.Edit.stack([])),
    edit(
        "a stack of other scope",
        "in separate calls",
        lambda: si.Edit.stack([si.Edit(ones(1, 6, 8)), si.Edit(ones(1, 6, 8), scope="each_new_token")]),
    ),
    edit("a shift of the MLP without its width", "has shape", lambda: si.Edit(mlp_shift=ones(1, 6))),
    edit("every new token and a token group", "leave at='last'", lambda: si.Edit(ones(1, 6, 8), scope="each_new_token", at="image")),
    edit(
        "a stack at other tokens", "in separate calls", lambda: si.Edit.stack([si.Edit(ones(1, 6, 8)), si.Edit(ones(1, 6, 8), at="image")])
    ),
    edit("composing edits at other tokens", "the same tokens", lambda: si.Edit(ones(1, 6, 8), at="image").compose(si.Edit(ones(1, 6, 8)))),
    run("a token group that is not there", "no token group", lambda: si.Edit(ones(1, 6, 8), at="verb"), DataError),
    run("a token beyond the prompt", "token 900", lambda: si.Edit(ones(1, 6, 8), at=[900]), DataError),
    run("a shift of the residual stream of another width", "give those", lambda: si.Edit(resid_shift=ones(1, 6, 5))),
    run("of a model with more heads", "the model needs", lambda: si.Edit(scale=ones(1, 6, 16))),
    run("of a model with fewer layers", "the model needs", lambda: si.Edit(scale=ones(1, 4, 8))),
    run("of a model with larger heads", "the model needs", lambda: si.Edit(shift=ones(1, 6, 8, 64))),
    run("of other questions", "questions", lambda: si.Edit(scale=ones(3, 1, 6, 8))),
    run("a scale of nan", "not finite", lambda: si.Edit(scale=ones(1, 6, 8) * float("nan"))),
    run("a shift of infinity", "not finite", lambda: si.Edit(shift=ones(1, 6, 8, 16) * float("inf"))),
    run("an mlp_scale of nan", "not finite", lambda: si.Edit(mlp_scale=ones(1, 6) * float("nan"))),
    run("a text", "expected an Edit", lambda: "zero"),
    run("a number", "expected an Edit", lambda: 2.0),
    attention("heads that are pairs", "give booleans", [(3, 0)]),
    attention("heads that are numbers", "give booleans", ones(1, 6, 8)),
    attention("heads of one variant without its axis", "give booleans", ones(6, 8).bool()),
    attention("an unknown mode", "choose 'block'", ones(1, 6, 8).bool(), mode="hide"),
    attention("places that are no numbers", "token numbers", ones(1, 6, 8).bool(), source=[2.5]),
    run("an attention edit of another model", "needs", lambda: si.AttentionEdit(ones(1, 2, 2).bool())),
    run(
        "an attention edit of an unknown group", "no token group", lambda: si.AttentionEdit(ones(1, 6, 8).bool(), target="imgae"), DataError
    ),
    run(
        "an attention edit of a token beyond the prompt",
        "token 900",
        lambda: si.AttentionEdit(ones(1, 6, 8).bool(), target=[900]),
        DataError,
    ),
    run(
        "attention moved away from the image",
        "not of the image",
        lambda: si.AttentionEdit(ones(1, 6, 8).bool(), target=[-2], mode="move"),
    ),
    run("a sweep of a head out of range", "out of range", lambda: si.HeadSweep(((9, 0),), 8, 0.0)),
    run("an adapter of another model", "the model needs", lambda: si.ScAle(ones(4, 8), ones(4), 0, ())),
    run("a steering of another model", "the model needs", lambda: si.Steering(ones(6, 8, 64), ones(6, 8), 1.0, ())),
    run("a bias of another model", "the model needs", lambda: si.LastTokenBias(ones(6, 8, 64))),
    Kind(
        "si.evaluate",
        "an edit of two variants",
        EditError,
        "takes one edit",
        lambda room: si.evaluate(room.vlm, room.qs, si.Edit(ones(2, 6, 8))),
    ),
)


def scale(mistake: str, says: str, **changed: Any) -> Kind:
    fields: dict[str, Any] = {"scalars": ones(6, 8), "mlp_scalars": ones(6), "n_parameters": 0, "heads": ()} | changed
    return Kind("si.ScAle", mistake, EditError, says, lambda room: si.ScAle(**fields))


def neutral(**changed: Any) -> si.ScAle:
    return replace(si.ScAle(ones(6, 8), ones(6), 0, ()), **changed)


def attached(mistake: str, error: type[Exception], says: str, work: Callable[[Any], Any]) -> Kind:
    return Kind("si.ScAle.attached", mistake, error, says, work)


def enter(made: Any, model: Any) -> None:
    with made.attached(model):
        pass


def without_cache(room: Any) -> None:
    with neutral().attached(room.vlm):
        room.vlm.generate(room.qs[0], max_new_tokens=3, use_cache=False)


ADAPTERS = (
    scale("scalars that are a list", "give a tensor", scalars=[[1.0]]),
    scale("scalars of one axis", r"\[L, H\]", scalars=ones(6)),
    scale("scalars of whole numbers", r"\[L, H\]", scalars=torch.ones(6, 8, dtype=torch.long)),
    scale("scalars of nan", "finite", scalars=ones(6, 8) * float("nan")),
    scale("MLP scalars of infinity", "finite", mlp_scalars=ones(6) * float("inf")),
    scale("MLP scalars of another model", "one per layer", mlp_scalars=ones(5)),
    scale("a head out of range", "out of range", heads=((6, 0),)),
    scale("a head twice", "given twice", heads=((0, 0), (0, 0))),
    scale("heads that are a number", "heads", heads=3),
    scale("an unknown scope", "choose 'last'", scope="all"),
    scale("a count that is a text", "whole number", n_parameters="2"),
    scale("settings that are a list", "mapping", settings=[1]),
    attached("a name for a model", ScaleInterpError, "", lambda room: enter(neutral(), "demo")),
    attached("nothing for a model", ScaleInterpError, "", lambda room: enter(neutral(), None)),
    attached("a plain torch module", ScaleInterpError, "", lambda room: enter(neutral(), torch.nn.Linear(2, 2))),
    attached("a question for a model", ScaleInterpError, "", lambda room: enter(neutral(), room.qs[0])),
    attached("a model of other shape", EditError, "the model needs", lambda room: enter(si.ScAle(ones(4, 8), ones(4), 0, ()), room.vlm)),
    attached("generation without a cache", EditError, "use_cache=True", without_cache),
    Kind(
        "si.Steering.attached",
        "a name for a model",
        ScaleInterpError,
        "",
        lambda room: enter(si.Steering(ones(6, 8, 16), ones(6, 8), 1.0, ()), "demo"),
    ),
    Kind(
        "si.LastTokenBias.attached",
        "a name for a model",
        ScaleInterpError,
        "",
        lambda room: enter(si.LastTokenBias(ones(6, 8, 16)), "demo"),
    ),
    Kind("si.AttentionScale.attached", "a name for a model", ScaleInterpError, "", lambda room: enter(si.AttentionScale(2.0), "demo")),
    Kind("si.AdaptVis.attached", "a name for a model", ScaleInterpError, "", lambda room: enter(si.AdaptVis(0.5, 1.5, 0.3), "demo")),
    Kind("si.PASTA.attached", "a name for a model", ScaleInterpError, "", lambda room: enter(si.PASTA(((0, 0),)), "demo")),
    Kind("si.PeftAdapter.attached", "a name for a model", ScaleInterpError, "", lambda room: enter(si.PeftAdapter("LoRA", {}, {}), "demo")),
    Kind("si.PeftAdapter.attached", "no configuration", ScaleInterpError, "", lambda room: enter(si.PeftAdapter("LoRA", {}, {}), room.vlm)),
    Kind(
        "si.AttentionScale.attached",
        "layers out of range",
        EditError,
        "0 to 5",
        lambda room: enter(si.AttentionScale(2.0, layers=(9,)), room.vlm),
    ),
    Kind("si.PASTA.attached", "heads out of range", EditError, "out of range", lambda room: enter(si.PASTA(((9, 0),)), room.vlm)),
    Kind(
        "si.AdaptVis.attached",
        "a gate over choices",
        EditError,
        "vocabulary",
        lambda room: enter(si.AdaptVis(0.5, 1.5, 0.3, confidence="choices"), room.vlm),
    ),
)


def setting(kind: Any, mistake: str, says: str, *args: Any, error: type[Exception] = EditError, **fields: Any) -> Kind:
    return Kind(f"si.{kind.__name__}", mistake, error, says, lambda room: kind(*args, **fields))


SETTINGS = (
    setting(si.FitSettings, "an unknown setting", "did you mean 'epochs'", epoch=3),
    setting(si.FitSettings, "epochs that are a text", "whole number", epochs="3"),
    setting(si.FitSettings, "no epochs", "above 0", epochs=0),
    setting(si.FitSettings, "a fraction of an epoch", "whole number", epochs=0.5),
    setting(si.FitSettings, "a step in parts of none", "below 1; give 1 or more", micro_batch=0),
    setting(si.FitSettings, "a learning rate of nan", "not finite", lr=float("nan")),
    setting(si.FitSettings, "a negative learning rate", "above 0", lr=-1.0),
    setting(si.FitSettings, "an unknown bound", "choose 'tanh'", bound="relu"),
    setting(si.FitSettings, "an unknown granularity", "choose 'head'", granularity="neuron"),
    setting(si.FitSettings, "a radius of 0", "above 0", radius=0.0),
    setting(si.FitSettings, "all pictures held out", "between 0 and 1", validation=1.0),
    setting(si.FitSettings, "no pictures held out", "between 0 and 1", validation=0.0),
    setting(si.FitSettings, "no patience", "above 0", patience=0),
    setting(si.FitSettings, "a batch of none", "above 0|below 1", batch_size=0),
    setting(si.FitSettings, "an unknown scope", "scope 'all'", scope="all"),
    setting(si.FitSettings, "an unknown loss", "choose 'choices' or 'vocabulary'", loss="vocab"),
    setting(si.FitSettings, "an unknown order", "choose 'shuffled' or 'file'", order="random"),
    setting(si.FitSettings, "an unknown epoch to keep", "choose 'best' or 'last'", keep="first"),
    setting(si.FitSettings, "a negative penalty", "at least 0", l2=-1e-4),
    setting(si.FitSettings, "a negative weight of what is retained", "at least 0", retain_weight=-1.0),
    setting(si.FitSettings, "a negative weight of distance", "at least 0", l1=-0.1),
    setting(si.FitSettings, "a clip of 0", "above 0", clip=0.0),
    setting(si.FitSettings, "sums over no batch", "above 0|below 1", accumulate=0),
    Kind("si.FitSettings.of", "an unknown recipe", EditError, "'default' or 'release'", lambda room: si.FitSettings.of("paper")),
    setting(si.Fit, "an unknown field", "did you mean 'heads'", head=((0, 0),)),
    setting(si.Fit, "a seed that is a text", "whole number", seed="0"),
    setting(si.AttentionScale, "no weight", "missing a required"),
    setting(si.AttentionScale, "a weight of nan", "not finite", float("nan")),
    setting(si.AttentionScale, "a negative weight", "from 0", -1.0),
    setting(si.AttentionScale, "a weight that is a text", "finite number", "2"),
    setting(si.AttentionScale, "unknown rows", "choose 'last'", 2.0, rows="first"),
    setting(si.AttentionScale, "unknown steps", "choose 'prefill'", 2.0, steps="never"),
    setting(si.AttentionScale, "unknown columns", "'image'", 2.0, columns="text"),
    setting(si.AttentionScale, "layers that are a number", "layers", 2.0, layers=3),
    setting(si.AttentionScale, "heads that are no pairs", "pair", 2.0, heads=((1,),)),
    setting(si.AdaptVis, "a threshold of nan", "not finite", 0.5, 1.5, float("nan")),
    setting(si.AdaptVis, "a negative threshold", "from 0", 0.5, 1.5, -0.1),
    setting(si.AdaptVis, "an unknown confidence", "choose 'vocabulary'", 0.5, 1.5, 0.3, confidence="words"),
    setting(si.AdaptVis, "the release's gate over choices", "confidence='vocabulary'", 0.5, 1.5, 0.3, confidence="choices", legacy=True),
    setting(si.PASTA, "an alpha of 0", "above 0", ((0, 0),), 0.0),
    setting(si.PASTA, "an infinite alpha", "not finite", ((0, 0),), float("inf")),
    setting(si.PASTA, "heads that are a text", "heads|pair", "all"),
)


def of_map(mistake: str, error: type[Exception], says: str, ask: Callable[[Any], Any]) -> Kind:
    return Kind("si.HeadMap", mistake, error, says, lambda room: ask(si.HeadMap("patch", "x", drawn(5, 6, 8), FIVE)))


RESULTS = (
    of_map("top 0", DataError, "1 to 48", lambda m: m.top(0)),
    of_map("top 49 of 48", DataError, "1 to 48", lambda m: m.top(49)),
    of_map("bottom -1", DataError, "1 to 48", lambda m: m.bottom(-1)),
    of_map("compared with a map of another model", DataError, "cannot be compared", lambda m: m.compare(torch.ones(4, 4))),
    *(
        Kind("si.HeadMap", mistake, DataError, says, lambda room, given=given: si.HeadMap("patch", "x", *given))
        for mistake, says, given in (
            ("a value of nan", "finite numbers", (drawn(5, 6, 8) * float("nan"), FIVE)),
            ("values of two axes", "finite numbers", (drawn(6, 8), FIVE)),
            ("groups of fewer questions", "each question's image", (drawn(5, 6, 8), FIVE[:2])),
        )
    ),
    *(
        Kind("si.Evaluation", mistake, DataError, says, lambda room, make=make: si.Evaluation(room.qs, make(len(room.qs))))
        for mistake, says, make in (
            ("scores of nan", "not all numbers", lambda n: torch.full((n, 4), float("nan"))),
            ("scores of one question too few", "a row for each", lambda n: torch.ones(n - 1, 4)),
        )
    ),
    *(
        Kind("si.LogitLens", f"the words of no such {name}", DataError, "there are 5 questions", lambda room, at=at: lens().top_words(*at))
        for name, at in {"question": (5, 0), "layer": (0, 6), "token": (0, 0, 1)}.items()
    ),
    Kind("si.ImageMap", "the patches of no such question", DataError, "no question 'x'", lambda room: image_map().of("x")),
    Kind("si.elbow", "no values", DataError, "at least one", lambda room: si.elbow(torch.zeros(0))),
    Kind("si.elbow", "values of nan", DataError, "all finite", lambda room: si.elbow(torch.tensor([1.0, float("nan")]))),
    Kind(
        "si.Evaluation",
        "compared with other questions",
        DataError,
        "the same ones",
        lambda room: room.evaluation.compare(si.evaluate(room.vlm, room.other)),
    ),
    Kind(
        "si.Evaluation",
        "compared with other right answers",
        DataError,
        "different right answers",
        lambda room: room.evaluation.compare(
            replace(room.evaluation, questions=[replace(q, answer=(q.answer + 1) % len(q.choices)) for q in room.evaluation.questions])
        ),
    ),
    Kind("si.Evaluation", "by a field that no question has", DataError, "no question has", lambda room: room.evaluation.by("colour")),
    Kind("si.HeadSets", "a head out of range", EditError, "out of range", lambda room: si.HeadSets(2, 4, {"a": ((2, 0),)})),
    Kind(
        "si.HeadSets",
        "joined with those of another model",
        DataError,
        "one model",
        lambda room: si.HeadSets.join([si.HeadSets(2, 4, {}), si.HeadSets(3, 4, {})]),
    ),
    Kind("si.HeadSets", "none to join", DataError, "at least one", lambda room: si.HeadSets.join([])),
    Kind("si.FunctionalHeads", "an unknown function", DataError, "choose from", lambda room: room.functional.map("smell")),
    Kind("si.score_answers", "too few answers", DataError, "one answer per question", lambda room: si.score_answers(["left"], room.qs)),
    Kind(
        "si.score_answers", "an unknown scorer", DataError, "choose 'strict'", lambda room: si.score_answers(["left"] * 6, room.qs, "loose")
    ),
    Kind(
        "si.score_answers",
        "a question that the scorer has no rule for",
        DataError,
        "has no rule for",
        lambda room: si.score_answers(["left"] * 6, room.qs, "release"),
    ),
    Kind(
        "si.score_text",
        "options that differ in case alone",
        DataError,
        "rename it",
        lambda room: si.score_text("a", si.Question("?", ("A", "a"), 0)),
    ),
)


def leak(name: str, mistake: str, call: Callable[[Any], Any]) -> Kind:
    return Kind(f"si.{name}", mistake, LeakError, "different splits", call)


TRAINING = (
    leak("falsify", "test questions among the training", lambda room: si.falsify(room.vlm, room.qs, room.qs)),
    leak("compare", "test questions among the training", lambda room: si.compare(room.vlm, room.qs, room.validation, room.qs)),
    leak("compare", "validation questions among the training", lambda room: si.compare(room.vlm, room.train, room.train, room.qs)),
    leak("compare_baselines", "test questions among the training", lambda room: si.compare_baselines(room.vlm, room.qs, room.qs)),
    leak("remove_heads_curve", "chosen on the test", lambda room: si.remove_heads_curve(room.vlm, room.qs, room.every, chosen_on=room.qs)),
    leak("faithfulness", "chosen on the test", lambda room: si.faithfulness(room.vlm, room.qs, room.every, chosen_on=room.qs)),
    Kind(
        "si.remove_heads_curve",
        "a ranking of some heads",
        EditError,
        "give all",
        lambda room: si.remove_heads_curve(room.vlm, room.qs, [(0, 0)]),
    ),
    Kind(
        "si.remove_heads_curve",
        "more heads than half",
        EditError,
        "1 to 24",
        lambda room: si.remove_heads_curve(room.vlm, room.qs, room.every, (40,)),
    ),
    Kind(
        "si.remove_heads_curve",
        "no draws",
        EditError,
        "at least one draw",
        lambda room: si.remove_heads_curve(room.vlm, room.qs, room.every, draws=0),
    ),
    Kind("si.faithfulness", "a ranking of some heads", EditError, "give all", lambda room: si.faithfulness(room.vlm, room.qs, [(0, 0)])),
    Kind(
        "si.faithfulness",
        "more heads than there are",
        EditError,
        "0 to 48",
        lambda room: si.faithfulness(room.vlm, room.qs, room.every, (49,)),
    ),
    Kind("si.fit_scale", "one picture", DataError, "more images", lambda room: si.fit_scale(room.vlm, room.train[:1])),
    Kind("si.fit_scale", "nothing to learn", EditError, "mlp=True", lambda room: si.fit_scale(room.vlm, room.train, heads=[], mlp=False)),
    Kind("si.fit_scale", "layers out of range", EditError, "0 to 5", lambda room: si.fit_scale(room.vlm, room.train, layers=[6])),
    Kind("si.fit_scales", "no fits", EditError, "at least one", lambda room: si.fit_scales(room.vlm, room.train, [])),
    Kind("si.fit_scales", "fits of words", ScaleInterpError, "", lambda room: si.fit_scales(room.vlm, room.train, ["fit"])),
    Kind(
        "si.fit_scales",
        "taught answers of other questions",
        ScaleInterpError,
        "",
        lambda room: si.fit_scales(room.vlm, room.train, [si.Fit(answers=(0,))]),
    ),
    Kind(
        "si.fit_scales",
        "taught answers out of range",
        ScaleInterpError,
        "",
        lambda room: si.fit_scales(room.vlm, room.train, [si.Fit(answers=(9,) * 6)]),
    ),
    Kind("si.fit_lora", "rank 0", EditError, "1 or more", lambda room: si.fit_lora(room.vlm, room.train, 0)),
    Kind("si.fit_lora", "no learning rates", EditError, "at least one", lambda room: si.fit_lora(room.vlm, room.train, learning_rates=[])),
    Kind("si.fit_lora", "a learning rate of 0", EditError, "above 0", lambda room: si.fit_lora(room.vlm, room.train, learning_rates=[0.0])),
    Kind("si.fit_steering", "more heads than there are", EditError, "1 to 48", lambda room: si.fit_steering(room.vlm, room.train, 49)),
    Kind("si.fit_steering", "no heads", EditError, "at least one", lambda room: si.fit_steering(room.vlm, room.many, [])),
    Kind("si.probe", "a label that no question has", DataError, "another label", lambda room: si.probe(room.vlm, room.qs, "smell")),
    Kind("si.probe", "a label that all questions share", DataError, "at least two", lambda room: si.probe(room.vlm, room.qs, "task")),
    Kind("si.probe", "fewer pictures than parts", DataError, "fewer folds", lambda room: si.probe(room.vlm, room.qs)),
    Kind(
        "si.functional_heads",
        "everything held out",
        DataError,
        "between 0 and 1",
        lambda room: si.functional_heads(room.vlm, room.steps, held_out=1.0),
    ),
    Kind(
        "si.functional_heads",
        "no permutations",
        ScaleInterpError,
        "permutations",
        lambda room: si.functional_heads(room.vlm, room.steps, permutations=0),
    ),
    Kind("si.functional_heads", "too few pictures", DataError, "more questions", lambda room: si.functional_heads(room.vlm, room.cogs_few)),
    Kind("si.rescale", "no factors", EditError, "at least one", lambda room: si.rescale(room.vlm, room.qs, [])),
    Kind("si.rescale", "an unknown unit", EditError, "choose 'head'", lambda room: si.rescale(room.vlm, room.qs, unit="neuron")),
    Kind("si.integrated_gradients", "no steps", ScaleInterpError, "1", lambda room: si.integrated_gradients(room.vlm, room.qs, steps=0)),
    Kind(
        "si.integrated_gradients",
        "a metric without a gradient",
        EditError,
        "no gradient",
        lambda room: si.integrated_gradients(room.vlm, room.qs, metric="accuracy"),
    ),
    Kind(
        "si.attribute",
        "a metric without a gradient",
        EditError,
        "no gradient",
        lambda room: si.attribute(room.vlm, room.qs, metric="accuracy"),
    ),
    Kind(
        "si.attribute", "the reference path", EditError, "needs gradients", lambda room: si.attribute(room.vlm, room.qs, path="reference")
    ),
    Kind("si.localise", "an unknown method", EditError, "choose from", lambda room: si.localise(room.vlm, [room.qs], [(2, 1)], ["magic"])),
    Kind("si.localise", "no known heads", EditError, "some, not none", lambda room: si.localise(room.vlm, [room.qs], [])),
    Kind("si.tune_scaling", "no weights", EditError, "at least one", lambda room: si.tune_scaling(room.vlm, room.qs, [])),
    Kind("si.tune_adaptvis", "no thresholds", EditError, "at least one", lambda room: si.tune_adaptvis(room.vlm, room.qs, thresholds=[])),
    Kind("si.evaluate_scaled", "no methods", EditError, "at least one", lambda room: si.evaluate_scaled(room.vlm, room.qs, [])),
    Kind(
        "si.evaluate_scaled", "methods of words", ScaleInterpError, "", lambda room: si.evaluate_scaled(room.vlm, room.qs, ["ScalingVis"])
    ),
    Kind(
        "si.compare",
        "an unknown method",
        DataError,
        "choose from",
        lambda room: si.compare(room.vlm, room.train, room.validation, room.qs, methods=["magic"]),
    ),
    Kind("si.intervene", "no edits", EditError, "at least one", lambda room: si.intervene(room.vlm, room.qs, {}, by="relation")),
    Kind(
        "si.intervene", "an edit of words", ScaleInterpError, "", lambda room: si.intervene(room.vlm, room.qs, {"a": "zero"}, by="relation")
    ),
    Kind("si.transfer", "no tasks", ScaleInterpError, "no tasks", lambda room: si.transfer(room.vlm, {}, {})),
    Kind(
        "si.transfer_table", "tunings of words", ScaleInterpError, "", lambda room: si.transfer_table(room.vlm, {"a": "x"}, {"a": room.qs})
    ),
    Kind(
        "si.object_attention", "questions without boxes", DataError, "can be placed", lambda room: si.object_attention(room.vlm, room.bare)
    ),
    Kind("si.capture", "a batch of none", ArgumentError, "1 or more", lambda room: si.capture(room.vlm, room.qs, 0)),
    Kind(
        "si.run_edits",
        "choices that the tokenizer does not know",
        DataError,
        "does not know",
        lambda room: si.run_edits(room.vlm, room.unknown),
    ),
    Kind(
        "si.run_edits",
        "a placeholder of pictures in the words",
        DataError,
        "placeholder",
        lambda room: si.run_edits(room.vlm, room.placeholder),
    ),
    Kind(
        "si.run_edits",
        "prompts of other scoring",
        EditError,
        "same scoring",
        lambda room: si.run_edits(room.vlm, room.qs, prompts=room.prompts, scoring="mean"),
    ),
    Kind("si.testbeds.plant", "no heads", ScaleInterpError, "", lambda room: si.testbeds.plant(room.vlm, [], 0.5)),
    Kind("si.testbeds.plant", "a factor of nan", EditError, "finite", lambda room: si.testbeds.plant(room.vlm, [(0, 0)], float("nan"))),
    Kind(
        "si.testbeds.circuit",
        "an unknown circuit",
        ModelError,
        "did you mean 'one-head'",
        lambda room: si.testbeds.circuit("testbed/one-hed"),
    ),
)
KINDS = [*QUESTIONS, *EDITS, *ADAPTERS, *SETTINGS, *RESULTS, *TRAINING]
