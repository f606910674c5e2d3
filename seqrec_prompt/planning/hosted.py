"""What a hosted model would charge for the same examples and sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.engines.pricing import HostedConfig, Quote, quote

if TYPE_CHECKING:
    from seqrec_prompt.planning.plan import PlanConfig


def quotes(config: PlanConfig, data: Dataset) -> dict[str, Quote]:
    """Quotes of 'finetune' and 'generate' at `config.hosted`, each at most: nothing is sent.

    A tuned model is generated with: its price is that of "ft:MODEL" in the file of prices if that is there. Raises
    CostError when a price is unknown.
    """
    from seqrec_prompt.engines.tokens import token_counter
    from seqrec_prompt.finetuning.chat import session_chats

    model = str(config.hosted)
    service = HostedConfig(prices=config.prices, encoding=config.encoding)
    template = config.template.model_copy(update={"name": "GenItem", "layout": "ask"})
    counter = token_counter(model, config.encoding)
    train = [
        counter.chat(chat) for chat in session_chats(data, data.split.cases("train"), template, counter, config.context)
    ]
    test = data.split.test
    asked = [counter.chat(chat[:-1]) for chat in session_chats(data, test, template, counter, config.prompt_context)]
    sessions = config.wanted(len(asked))
    tuned = {"training": round(sum(train) * config.epochs)}
    generated = {
        "input": round(sum(asked) * sessions / max(len(asked), 1)),
        "output": sessions * config.answers * config.max_tokens,
    }
    return {
        "finetune": quote(service, model, tuned, exact=counter.exact),
        "generate": quote(service, f"ft:{model}", generated, exact=False),
    }
