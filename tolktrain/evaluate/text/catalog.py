"""The text tasks that can be evaluated: which definition of lm-evaluation-harness each uses, and on which data."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tolktrain.errors import UserError

INSTALL = "pip install -e '.[eval]' -c constraints.txt"


@dataclass(frozen=True)
class DataSet:
    """A data set of the Hugging Face hub, or the same in files of one's own."""

    hub: str  # its id
    split: str  # that is evaluated
    fields: tuple[str, ...]  # that its items must have

    @property
    def folder(self) -> str:
        """Name of its folder in the folder of all data."""
        return self.hub.partition("/")[2]


@dataclass(frozen=True)
class TextTask:
    """A task. All are evaluated without examples in the prompt (zero-shot)."""

    name: str
    definition: str  # path of its YAML file, in the folder of tasks of lm-evaluation-harness
    data: DataSet
    part: str | None = None  # configuration of the data set
    group: str | None = None  # task of which it is a part


_ARC = DataSet("allenai/ai2_arc", "test", ("question", "choices", "answerKey"))
_BLIMP = DataSet("nyu-mll/blimp", "train", ("sentence_good", "sentence_bad"))
_MMLU = DataSet("cais/mmlu", "test", ("question", "choices", "answer"))

_SINGLE = (
    TextTask("arc_easy", "arc/arc_easy.yaml", _ARC, "ARC-Easy"),
    TextTask("arc_challenge", "arc/arc_challenge.yaml", _ARC, "ARC-Challenge"),
    TextTask(
        "boolq",
        "super_glue/boolq/default.yaml",
        DataSet("aps/super_glue", "validation", ("passage", "question", "label")),
        "boolq",
    ),
    TextTask(
        "commonsense_qa",
        "commonsense_qa/default.yaml",
        DataSet("tau/commonsense_qa", "validation", ("question", "choices", "answerKey")),
    ),
    TextTask(
        "hellaswag",
        "hellaswag/hellaswag.yaml",
        DataSet("Rowan/hellaswag", "validation", ("activity_label", "ctx_a", "ctx_b", "endings", "label")),
    ),
    TextTask("lambada_openai", "lambada/lambada_openai.yaml", DataSet("EleutherAI/lambada_openai", "test", ("text",))),
    TextTask(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        DataSet("allenai/openbookqa", "test", ("question_stem", "choices", "answerKey")),
        "main",
    ),
    TextTask("piqa", "piqa/piqa.yaml", DataSet("baber/piqa", "validation", ("goal", "sol1", "sol2", "label"))),
    TextTask(
        "sciq",
        "sciq/sciq.yaml",
        DataSet("allenai/sciq", "test", ("support", "question", "correct_answer", "distractor1")),
    ),
    TextTask(
        "storycloze_2016",
        "storycloze/storycloze_2016.yaml",
        DataSet("LSDSem/story_cloze", "test", ("input_sentence_1", "sentence_quiz1", "answer_right_ending")),
        "2016",
    ),
    TextTask(
        "winogrande",
        "winogrande/default.yaml",
        DataSet("allenai/winogrande", "validation", ("sentence", "option1", "option2", "answer")),
        "winogrande_xl",
    ),
)

# Groups of tasks: the folder of their definitions, the prefix of their files, and how the group's mean is taken.
_GROUPS = {"blimp": ("blimp", "", _BLIMP), "mmlu": ("mmlu/default", "mmlu_", _MMLU)}
EQUAL_PARTS = ("blimp",)
"""Groups in whose mean each part counts once; in that of the others, each item does."""


def definitions_folder() -> Path:
    """The folder of the definitions. Raises UserError if lm-evaluation-harness is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"text tasks need lm-evaluation-harness, the extra eval: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "tasks"


def find_tasks(names: Sequence[str]) -> list[TextTask]:
    """The tasks of these names, groups replaced by their parts.

    Raises UserError if lm-evaluation-harness is not installed, or a name is unknown or given twice.
    """
    folder = definitions_folder()
    known = {task.name: task for task in _SINGLE}
    groups: dict[str, list[TextTask]] = {}
    for group, (subfolder, prefix, data) in _GROUPS.items():
        for file in sorted((folder / subfolder).glob(f"{prefix}[!_]*.yaml")):
            part = file.stem.removeprefix(prefix)
            task = TextTask(f"{group}_{part}", f"{subfolder}/{file.name}", data, part, group)
            groups.setdefault(group, []).append(task)
            known[task.name] = task
    found: dict[str, TextTask] = {}
    for name in names:
        if name not in known and name not in groups:
            near = get_close_matches(name, [*known, *groups], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--text-tasks: unknown task {name!r}{hint} Known are {', '.join(sorted(t.name for t in _SINGLE))}, and"
                f" the groups {' and '.join(_GROUPS)}, whose parts are named such as {groups['blimp'][0].name}"
            )
        for task in groups.get(name, [known[name]] if name in known else []):
            if task.name in found:
                raise UserError(f"--text-tasks names {task.name} twice; name it once, or its group alone")
            found[task.name] = task
    return list(found.values())
