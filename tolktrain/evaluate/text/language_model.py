"""A model as lm-evaluation-harness uses one: log-likelihoods and greedy continuations of texts."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from tolktrain.data.batch import collate
from tolktrain.data.sequences import Sequence as TokenSequence
from tolktrain.errors import UserError
from tolktrain.evaluate.scoring import length_batches
from tolktrain.generate.context import Context
from tolktrain.generate.decoding import use_accelerator
from tolktrain.generate.tensor_ranks import make_decoder
from tolktrain.model.inputs import ModelInputs
from tolktrain.model.smoltolk import SmolTolk
from tolktrain.parallel.collectives import all_gather_objects

Progress = Callable[[int, int], None]
"""Called with the number of sequences done on this rank, and their total."""

_GENERATED = 256  # ids at most, unless the task says otherwise; as in the class of lm-evaluation-harness
_Answer = tuple[float, bool]


@dataclass(frozen=True, eq=False)
class TextModel:
    """A model with its text tokenizer."""

    name: str  # for messages and results
    model: SmolTolk
    tokenizer: Tokenizer
    eos_id: int
    prefix_id: int  # precedes a text without context: BOS if the tokenizer has one, else EOS
    context: int  # positions that the model reads at most


class TextLM(TemplateLM):
    """The interface of lm-evaluation-harness to a model.

    Texts are tokenized, and cut on the left if they are longer than the context, as its own class for models of
    transformers does (`HFLM`), so that both give the same numbers. All ranks get all requests, and share the work.
    """

    def __init__(
        self,
        text_model: TextModel,
        context: int,
        batch_tokens: int,
        rank: int = 0,
        world_size: int = 1,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Move the model to the GPU if there is one.

        Args:
            text_model: the model and its tokenizer.
            context: positions that are read at most.
            batch_tokens: positions, with padding, that are read at a time.
            rank: of this process; not given to the harness, because each process returns all results.
            world_size: number of processes.
            progress: see `Progress`.
        """
        super().__init__()
        self._text = text_model
        self._model = use_accelerator(text_model.model).eval()
        self._context = context
        self._batch_tokens = batch_tokens
        self._share = slice(rank, None, world_size)
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token."""
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id that precedes a text without context."""
        return self._text.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; with the special tokens that the tokenizer itself adds, unless they are switched off.

        Raises UserError if an id is not one of the model's.
        """
        ids: list[int] = self._text.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids
        if max(ids, default=0) >= self._model.architecture.text_vocab_size:
            raise UserError(
                f"{self._text.name}: its tokenizer has the id {max(ids)}, but its text vocabulary ends at"
                f" {self._model.architecture.text_vocab_size - 1}; it is the tokenizer of another model"
            )
        return ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[_Answer]:
        """For each (context, continuation): log-likelihood of the continuation in nats, and whether it is greedy."""
        found: list[_Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each whole text in nats, in windows as long as the context; each id counts once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for place, (text,) in enumerate(request.args for request in requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._context,
                context_len=1,
            ):
                before, scored = make_disjoint_window(window)
                windows.append((None, before, scored))
                owners.append(place)
        totals = [0.0] * len(requests)
        for place, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[place] += total
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[_Answer]:
        # Continuations of the same input, which may differ in their last id only, share a row.
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, (_, before, scored) in enumerate(requests):
            if len(scored) > self._context:
                raise UserError(
                    f"{self._text.name}: a continuation has {len(scored)} ids, but the models read at most"
                    f" {self._context}; leave out its task, or use a model of a longer context"
                )
            rows[tuple([*before, *scored][-(self._context + 1) : -1])].append(place)
        inputs = sorted(rows)
        batches = length_batches([len(ids) for ids in inputs], self._batch_tokens)[self._share]
        total, done = sum(map(len, batches)), 0
        answers: dict[int, _Answer] = {}
        for batch in batches:
            wanted = {inputs[index]: [requests[place][2] for place in rows[inputs[index]]] for index in batch}
            for ids, row in zip(wanted, self._score(wanted), strict=True):
                answers |= dict(zip(rows[ids], row, strict=True))
            done += len(batch)
            self._progress(done, total)
        for part in all_gather_objects(answers):
            answers |= part
        return [answers[place] for place in range(len(requests))]

    @torch.inference_mode()
    def _score(self, wanted: Mapping[tuple[int, ...], list[list[int]]]) -> list[list[_Answer]]:
        """The answers for the continuations [n ids each] that end one position after each input."""
        length = max(len(ids) for ids in wanted) + 1
        scored = {ids: max(map(len, continuations)) for ids, continuations in wanted.items()}
        batch = collate([self._sequence(ids, length, scored[ids]) for ids in wanted])
        inputs = ModelInputs.from_batch(batch).to(next(self._model.parameters()).device)
        logits = self._model.heads.text_logits(self._model.carry(inputs)).float()  # [n, V]
        logs = torch.log_softmax(logits, dim=-1).cpu()
        greedy = logs.argmax(dim=-1)
        row_of = (batch.scored.text % len(wanted)).numpy()  # rows are time-major
        found = []
        for row, continuations in enumerate(wanted.values()):
            at = torch.from_numpy(np.flatnonzero(row_of == row))
            answers = []
            for continuation in continuations:
                ids, last = torch.tensor(continuation), at[-len(continuation) :]
                total = float(logs[last, ids].sum(dtype=torch.float64))
                answers.append((self._finite(total), bool((greedy[last] == ids).all())))
            found.append(answers)
        return found

    def _finite(self, value: float) -> float:
        if not np.isfinite(value):
            raise UserError(
                f"{self._text.name}: the likelihood of a text is not a finite number; its weights are damaged or its"
                " training has diverged: evaluate an earlier checkpoint"
            )
        return value

    def _sequence(self, ids: tuple[int, ...], length: int, num_scored: int) -> TokenSequence:
        """The input, and one position more, padded; the last `num_scored` targets are scored."""
        num_codebooks = self._model.architecture.num_codebooks
        tokens = np.zeros((num_codebooks, length), np.int64)
        tokens[0] = self._text.eos_id
        tokens[0, : len(ids)] = ids
        may = np.zeros(length, np.bool_)
        may[len(ids) + 1 - num_scored : len(ids) + 1] = True
        return TokenSequence(tokens, np.zeros(length, np.bool_), may, len(ids) + 1, "text", "text")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, up to a stop string, EOS or the most ids that the task allows.

        Raises UserError if a task asks for random numbers.
        """
        order = list(range(len(requests)))[self._share]
        texts = {}
        for done, place in enumerate(order):
            texts[place] = self._generate(*requests[place].args)
            self._progress(done + 1, len(order))
        for part in all_gather_objects(texts):
            texts |= part
        return [texts[place] for place in range(len(requests))]

    def _generate(self, context: str, settings: Mapping[str, Any]) -> str:
        if settings.get("do_sample") or settings.get("temperature", 0.0):
            raise UserError(
                f"{self._text.name}: the task asks for random continuations; only greedy ones are supported"
            )
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = int(settings.get("max_gen_toks", settings.get("max_tokens", _GENERATED)))
        if most >= self._context:
            raise UserError(
                f"{self._text.name}: the task generates up to {most} ids, but the models read at most {self._context};"
                " leave out the task, or use a model of a longer context"
            )
        ids = self.tok_encode(context)[-(self._context - most) :] or [self.prefix_token_id]
        tokens = np.zeros((self._model.architecture.num_codebooks, len(ids)), np.int64)
        tokens[0] = ids
        decoder = make_decoder(self._model, "text", self._context)
        logits = decoder.begin([Context(tokens, np.zeros(len(ids), np.bool_))])
        found: list[int] = []
        while True:
            chosen = int(logits[0].argmax())
            if chosen == self._text.eos_id:
                break
            found.append(chosen)
            if len(found) >= most or any(stop in self._decode(found) for stop in stops):
                break
            column = np.zeros((1, tokens.shape[0]), np.int64)
            column[0, 0] = chosen
            logits = decoder.extend(column)
        text = self._decode(found)
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._text.tokenizer.decode(ids)
        return text
