"""Our class for lm-evaluation-harness against its own class on the same weights, and against other batches."""

import importlib.machinery
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from text_data import TASKS, write_text_data
from tiny_run import tiny_tree, write_run

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from tolktrain.errors import UserError
from tolktrain.evaluate.text import language_model
from tolktrain.evaluate.text.catalog import find_tasks
from tolktrain.evaluate.text.language_model import TextLM
from tolktrain.evaluate.text.models import load_other, load_trained
from tolktrain.evaluate.text.tasks import loaded_tasks
from tolktrain.interop.export.llama import export_llama
from tolktrain.interop.export.source import ExportSource

pytestmark = pytest.mark.transformers

CONTEXT = 40  # so short that few items fit


@pytest.fixture(scope="module")
def run_and_export(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, Path]:
    """A run, and its text half as a Llama checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    run = write_run(folder, tiny_tree(folder, repository))
    export_llama(ExportSource.of(run), folder / "llama", "fp32", lambda line: None)
    return run, folder / "llama"


@pytest.fixture(scope="module")
def hflm(run_and_export: tuple[Path, Path]) -> Iterator[Any]:
    """The harness's own class around the exported model. It imports accelerate, but uses it for loading only."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("accelerate", "accelerate.utils"):
            module = ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            for attribute in ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size", "get_max_memory"):
                setattr(module, attribute, None)
            patch.setitem(sys.modules, name, module)
        from lm_eval.models.huggingface import HFLM

        for name in [name for name in sys.modules if name.startswith("lm_eval.models.huggingface")]:
            patch.delitem(sys.modules, name)
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = run_and_export[1]
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    yield lambda length: HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=3)


def _ours(run: Path, context: int = CONTEXT, batch_tokens: int = 600) -> TextLM:
    return TextLM(load_trained(run), context, batch_tokens)


def _requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.mark.parametrize("context", [CONTEXT, 192])
def test_every_item_has_the_numbers_of_the_harness(
    run_and_export: tuple[Path, Path], hflm: Any, tmp_path: Path, context: int
) -> None:
    """Log-likelihoods of all choices of all tasks, whole and cut on the left, of the run and of its export."""
    run, export = run_and_export
    write_text_data(tmp_path)
    own = load_trained(run)
    with loaded_tasks(find_tasks(TASKS), tmp_path) as tasks:
        expected = tasks.answers(hflm(context))
        found = {
            "run": tasks.answers(TextLM(own, context, 300)),
            "other batches": tasks.answers(TextLM(own, context, 1)),
            "export": tasks.answers(TextLM(load_other(str(export), own), context, 300)),
        }
    assert expected.keys() == set(TASKS)
    for answers in found.values():
        for task, items in expected.items():
            assert len(items) == len(answers[task]) in (2, 6)
            for theirs, ours in zip(items, answers[task], strict=True):
                assert ours.log_likelihoods == pytest.approx(theirs.log_likelihoods, abs=1e-4)
                assert (ours.hash, ours.target, ours.greedy) == (theirs.hash, theirs.target, theirs.greedy)
                for name, value in theirs.metrics.items():
                    assert ours.metrics[name] == pytest.approx(value, abs=1e-4)


def test_the_likelihood_is_the_sum_over_the_logits(run_and_export: tuple[Path, Path]) -> None:
    """Without the harness: a forward pass of the exported model per text, with the last ids if it is too long."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(run_and_export[1], dtype=torch.float32).eval()
    ours = _ours(run_and_export[0])
    cases = [
        ("Tom sees a", " boat in the river"),
        ("", "Tom sees a boat"),
        ("Mia goes to the house. " * 9, "It rains."),
    ]
    found = ours.loglikelihood(_requests("loglikelihood", cases))
    for (context, continuation), (value, is_greedy) in zip(cases, found, strict=True):
        whole = ours.tok_encode(context.rstrip() + " " * (context != context.rstrip()) + continuation)
        num_context = len(ours.tok_encode(context.rstrip())) if context else 0
        ids = whole if context else [ours.eot_token_id, *whole]
        num_scored = len(whole) - num_context
        ids = ids[-(CONTEXT + 1) :]
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids[:-1]])).logits[0].double(), dim=-1)[-num_scored:]
        targets = torch.tensor(ids[-num_scored:])
        assert value == pytest.approx(float(logs.gather(1, targets[:, None]).sum()), abs=1e-4)
        assert is_greedy == bool((logs.argmax(dim=-1) == targets).all())


def test_whole_texts_and_generation(run_and_export: tuple[Path, Path], hflm: Any) -> None:
    ours, theirs = _ours(run_and_export[0]), hflm(CONTEXT)
    texts = [("Tom has a boat.",), ("Mia goes to the house and sees a lamp. " * 12,)]
    found = ours.loglikelihood_rolling(_requests("loglikelihood_rolling", texts))
    expected = theirs.loglikelihood_rolling(_requests("loglikelihood_rolling", texts))
    assert found == pytest.approx(expected, abs=1e-3)
    settings: list[dict[str, Any]] = [{"until": ["e"], "max_gen_toks": 12}, {"until": "\n", "max_gen_toks": 5}]
    prompts = [(text, dict(one)) for one in settings for (text,) in texts]
    assert ours.generate_until(_requests("generate_until", prompts)) == theirs.generate_until(
        _requests("generate_until", [(text, dict(one)) for text, one in prompts])
    )


def test_greedy_is_recognized(run_and_export: tuple[Path, Path]) -> None:
    """What the model generates is greedy, unless the tokenizer encodes it in another way together with the prompt."""
    ours = _ours(run_and_export[0])
    prompts = ["Tom", "The boat", "Mia sees", "A lamp in the", "Ben was", "school"]
    settings = {"until": [], "max_gen_toks": 2}
    texts = ours.generate_until(_requests("generate_until", [(prompt, settings) for prompt in prompts]))
    whole = [(p, t) for p, t in zip(prompts, texts, strict=True) if _stays_apart(ours, p, t)]
    assert whole
    assert all(is_greedy for _, is_greedy in ours.loglikelihood(_requests("loglikelihood", whole)))
    longer = [(prompt, text + " lamp") for prompt, text in whole]
    assert not any(is_greedy for _, is_greedy in ours.loglikelihood(_requests("loglikelihood", longer)))


def _stays_apart(ours: TextLM, prompt: str, text: str) -> bool:
    ids, first = ours.tok_encode(prompt + text), ours.tok_encode(prompt)
    return len(ids) == len(first) + 2 and ids[: len(first)] == first and not text.isspace()


class _Sent(Exception):
    """What a rank gives to the others."""


def test_ranks_share_the_work(run_and_export: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two ranks scores a part, and together they have the results of one."""
    text_model = load_trained(run_and_export[0])
    cases = [(f"Tom has {number} boats and", f" a lamp {number}") for number in (1, 12, 123, 1234, 12345)]
    requests = _requests("loglikelihood", cases)
    alone = TextLM(text_model, CONTEXT, 60).loglikelihood(requests)

    def send(value: Any) -> None:
        raise _Sent(value)

    monkeypatch.setattr(language_model, "all_gather_objects", send)
    with pytest.raises(_Sent) as sent:
        TextLM(text_model, CONTEXT, 60, rank=1, world_size=2).loglikelihood(requests)
    [other] = sent.value.args
    monkeypatch.setattr(language_model, "all_gather_objects", lambda value: parts.extend([dict(value), other]) or parts)
    parts: list[dict] = []
    together = TextLM(text_model, CONTEXT, 60, rank=0, world_size=2).loglikelihood(requests)
    assert together == alone
    assert 0 < len(other) < len(cases) and sorted([*parts[0], *other]) == list(range(len(cases)))


def test_what_a_model_cannot_do(run_and_export: tuple[Path, Path], tmp_path: Path) -> None:
    run, export = run_and_export
    ours = _ours(run, context=8)
    with pytest.raises(UserError, match="a continuation has .* ids, but the models read at most 8"):
        ours.loglikelihood(_requests("loglikelihood", [("Tom", " sees a boat in the river and a lamp in the house")]))
    with pytest.raises(UserError, match="generates up to 8 ids"):
        ours.generate_until(_requests("generate_until", [("Tom", {"max_gen_toks": 8})]))
    with pytest.raises(UserError, match="only greedy ones"):
        ours.generate_until(_requests("generate_until", [("Tom", {"max_gen_toks": 2, "do_sample": True})]))
    with torch.no_grad():
        next(iter(ours._model.parameters())).fill_(np.nan)
    with pytest.raises(UserError, match="not a finite number"):
        ours.loglikelihood(_requests("loglikelihood", [("Tom", " sees")]))
    with pytest.raises(UserError, match="--against: .*nowhere is no folder"):
        load_other("./nowhere", load_trained(run))
    bare = tmp_path / "bare"
    shutil.copytree(export, bare)
    (bare / "tokenizer.json").unlink()
    assert load_other(str(bare), load_trained(run)).eos_id == load_trained(run).eos_id


def test_beginning_of_text(run_and_export: tuple[Path, Path], tmp_path: Path) -> None:
    """A tokenizer that puts a token before each text, as Llama 3's, and names it: used as the harness does."""
    import json

    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    run, export = run_and_export
    folder = tmp_path / "llama"
    shutil.copytree(export, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.id_to_token(7)
    tokenizer.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 7)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": begin}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = TextLM(load_other(str(folder), load_trained(run)), CONTEXT, 300)
    assert ours.prefix_token_id == 7
    assert ours.tok_encode("Tom")[0] == 7 and ours.tok_encode("Tom", add_special_tokens=False)[0] != 7
