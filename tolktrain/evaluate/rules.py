"""Scores of items, and the rules by which they become the number that two items are compared by."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tolktrain.errors import UserError
from tolktrain.evaluate.benchmarks.base import Modality, Role

Context = Literal["eos", "none"]
"""What precedes the first token: EOS of its modality, or nothing, which leaves the first token unscored."""

_NAME = re.compile(r"(whole|continuation)_(mean|sum)(_closing_eos)?(_no_context)?")


@dataclass(frozen=True)
class SegmentScore:
    """The log-likelihood of a segment in nats, given everything before it."""

    role: Role
    modality: Modality
    sum: float  # of its tokens, without a closing EOS
    tokens: int  # that the sum contains

    def to_dict(self) -> dict[str, Any]:
        """As a line of a score file has it."""
        return vars(self) | {}


@dataclass(frozen=True)
class ItemScore:
    """The scores of one item."""

    id: str
    context: Context
    segments: tuple[SegmentScore, ...]
    closing_eos: float | None  # log-likelihood of EOS after the last segment; None with several codebooks

    def check(self) -> None:
        """Raise `UserError` naming the item if a number is not finite."""
        numbers = [segment.sum for segment in self.segments]
        numbers += [] if self.closing_eos is None else [self.closing_eos]
        if not all(map(math.isfinite, numbers)):
            raise UserError(
                f"the score of {self.id} is not a finite number; the weights of this checkpoint are damaged or training"
                " has diverged: evaluate an earlier checkpoint"
            )


@dataclass(frozen=True)
class Rule:
    """Which log-likelihoods are added, and whether the sum is divided by their number.

    Names are `whole_mean`, `whole_sum`, `continuation_mean` and `continuation_sum`, then `_closing_eos` if the EOS
    after the last segment counts, then `_no_context` if nothing precedes the first token.
    """

    part: Literal["whole", "continuation"]
    norm: Literal["mean", "sum"]
    closing_eos: bool
    context: Context

    @classmethod
    def parse(cls, name: str) -> "Rule":
        """The rule of a name. Raises `UserError` for an unknown one."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(
                f"unknown rule {name!r}; a rule is whole or continuation, then _mean or _sum, then optionally"
                " _closing_eos and _no_context, such as whole_mean_closing_eos"
            )
        part, norm, closing, bare = match.groups()
        return cls(part, norm, closing is not None, "none" if bare else "eos")  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The name that `parse` takes."""
        closing, bare = "_closing_eos" * self.closing_eos, "_no_context" * (self.context == "none")
        return f"{self.part}_{self.norm}{closing}{bare}"

    def score(self, item: ItemScore) -> float:
        """The item's score; higher is likelier. Raises `UserError` if the item cannot be scored by this rule."""
        assert item.context == self.context, "scores of the rule's context are chosen before"
        chosen: Sequence[SegmentScore] = item.segments
        if self.part == "continuation":
            chosen = [segment for segment in item.segments if segment.role == "continuation"]
            if not chosen:
                raise UserError(
                    f"{item.id} has no continuation that the rule {self.name} could score; use a whole_ rule"
                )
        total, tokens = sum(segment.sum for segment in chosen), sum(segment.tokens for segment in chosen)
        if self.closing_eos:
            if item.closing_eos is None:
                raise UserError(
                    f"{item.id}: with several codebooks the closing EOS is not scored, but the rule {self.name} needs"
                    " it; use the rule without _closing_eos"
                )
            total, tokens = total + item.closing_eos, tokens + 1
        if not tokens:
            raise UserError(
                f"{item.id} has no token that the rule {self.name} scores: nothing precedes its only one; use a rule"
                " without _no_context"
            )
        return total if self.norm == "sum" else total / tokens
