"""In what an answer consists: text, speech, both in turn, or a chain of both."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from tolktrain.config import Config
from tolktrain.config.data import Strategy
from tolktrain.data.records import ASSISTANT, USER
from tolktrain.data.strategies import STRATEGIES
from tolktrain.data.strategies.conversation import ConversationStrategy
from tolktrain.errors import UserError
from tolktrain.model.architecture import Architecture
from tolktrain.vocabulary import ROLE_TOKEN

Form = Literal["text", "speech", "interleaved", "chain"]
FORMS: Mapping[Form, Strategy] = MappingProxyType(
    {"text": "answer_text", "speech": "answer_speech", "interleaved": "answer_interleaved", "chain": "answer_chain"}
)


def strategy_of(form: Form) -> ConversationStrategy:
    """The strategy that builds training sequences of this form."""
    found = STRATEGIES[FORMS[form]]
    assert isinstance(found, ConversationStrategy)
    return found


def answers(architecture: Architecture) -> bool:
    """Whether a model has the tokens of a conversation."""
    return {ROLE_TOKEN.format(role) for role in (USER, ASSISTANT)} <= set(architecture.special_tokens)


def require_answers(architecture: Architecture, source: str) -> None:
    """Raise UserError for a model without tokens of the roles user and assistant."""
    if not answers(architecture):
        known = ", ".join(architecture.special_tokens) or "none"
        wanted = " and ".join(ROLE_TOKEN.format(role) for role in (USER, ASSISTANT))
        raise UserError(
            f"{source} is a base model: it lacks the tokens {wanted} (model.special_tokens: {known}), so it continues,"
            " but does not answer; tune it on conversations first (docs/instruct.md), or continue a prompt with --text"
            " or --audio"
        )


def tuned_form(config: Config) -> Form | None:
    """The form of answers with the largest weight in the last stage that trains answers; the first one of several.

    None if no stage does, as of a folder of weights.
    """
    for stage in reversed(config.train.stages):
        weights = {form: stage.mixture[name].weight for form, name in FORMS.items() if name in stage.mixture}
        if weights:
            return max(weights, key=lambda form: weights[form])
    return None


def chosen_form(form: Form | None, config: Config, source: str) -> Form:
    """The form that is asked for, or else that of the training. Raises UserError if there is neither."""
    found = form or tuned_form(config)
    if found is None:
        raise UserError(
            f"{source} does not record which answers it was tuned on; name them: --answer {', '.join(FORMS)}"
        )
    return found
