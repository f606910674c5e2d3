"""A vLLM server that runs already (`vllm serve`), behind the search: nothing is wanted of it but its protocol.

vLLM's completions tell the log-probability of tokens that a request names by their numbers, over the whole vocabulary,
before anything that sampling does. So both scorings are exact, and the server needs no processor and no restart; what
a processor would save, `joint` scores pay: a request for each token that they count without a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from seqrec_prompt.engines.models import load_tokenizer
from seqrec_prompt.engines.openai import Service
from seqrec_prompt.engines.pricing import ServiceConfig
from seqrec_prompt.engines.requests import MOST_IDS, FloatArray, Question, RequestEngine, answer_split
from seqrec_prompt.errors import ConfigError, HostedError, ModelError
from seqrec_prompt.ragged import IntArray

AT_ONCE = 64  # requests under way together
# Nothing of the server's own, nor of the model's generation_config.json.
GREEDY = {"temperature": 0, "top_p": 1, "max_tokens": 1, "logprobs": 1}
MORE = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "ignore_eos": True, "return_tokens_as_token_ids": True}
OTHERWISE = (
    "Ask it for answers in its own words, which are put among the items:\n"
    "  seqrec-prompt hosted generate --base-url {url} --free --by requests --model {model} …\n"
    "  seqrec-prompt ground …"
)


class ServedEngine(RequestEngine):
    """Scores title prefixes by requests to a server (protocol `decoding.search.PrefixScorer`).

    model: the server's name of it. tokenizer: the one that the server's model reads with. context: most tokens that the
    server reads.
    """

    def __init__(self, service: Service, model: str, tokenizer: Any, context: int) -> None:
        super().__init__(context)
        self.service, self.model, self.tokenizer = service, model, tokenizer

    @classmethod
    def connect(
        cls, at: ServiceConfig, tokenizer_of: str, sample: str, served: str | None = None, revision: str | None = None
    ) -> ServedEngine:
        """Ask a server what it serves, and whether it tells the probabilities of named tokens.

        sample: a text that it must read by the same tokens as `tokenizer_of`, a hub name or a directory. served: the
        server's name of the model, or of the adapter; unset where it has only one. Raises HostedError where nobody
        answers, ConfigError for a name that is not served, ModelError for a server or a tokenizer that does not fit.
        """
        service = Service(at)
        model, context = _chosen(service, served)
        engine = cls(service, model, load_tokenizer(tokenizer_of, revision), context)
        engine._probe(tokenizer_of, sample)
        return engine

    def answer(self, questions: Sequence[Question]) -> list[FloatArray]:
        """Log-softmax over the vocabulary: per question that of each forced token, then of each choice."""
        return answer_split(questions, MOST_IDS, self._answer_each)

    def _answer_each(self, parts: list[Question]) -> list[FloatArray]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                return list(pool.map(self._answer_one, parts))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is under way ends, nothing else begins
                raise

    def _answer_one(self, question: Question) -> FloatArray:
        return self._logprobs(self._ask(question.prefix, question.choices), question.choices)

    def _ask(self, prompt: str | list[int], wanted: IntArray, **more: Any) -> dict[str, Any]:
        body = GREEDY | {"model": self.model, "prompt": prompt}
        return self.service.complete(body, MORE | {"logprob_token_ids": wanted.tolist()} | more)

    def _logprobs(self, answer: dict[str, Any], wanted: IntArray) -> FloatArray:
        """(wanted,) what an answer tells of its one token. Raises ModelError where it does not tell it."""
        try:
            logprobs = answer["choices"][0]["logprobs"]
            told, best = logprobs["top_logprobs"][0], float(logprobs["token_logprobs"][0])
            found = np.array([told[f"token_id:{token}"] for token in wanted.tolist()], np.float32)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ModelError(
                f"{self.service.url} does not tell the log-probabilities of the tokens that it is asked for "
                "(logprob_token_ids), as vLLM 0.32 does: no list can be constrained there. "
                + OTHERWISE.format(url=self.service.url, model=self.model)
            ) from None
        # Greedy, it writes the best of all tokens, which no distribution gives less; models pad their vocabulary.
        if best < -np.log(2 * len(self.tokenizer)) or max(best, *found) > 1e-3:
            raise ModelError(
                f"{self.service.url} tells logits, not log-probabilities. Start it with --logprobs-mode raw_logprobs."
            )
        return found

    def _probe(self, tokenizer_of: str, sample: str) -> None:
        """Let the server read a text, and tell two tokens of what follows."""
        wanted = np.array([0, 1], np.int32)
        try:
            answer = self._ask(sample, wanted, add_special_tokens=False, return_token_ids=True)
        except HostedError as error:
            if error.status not in (400, 404, 405, 422, 501):
                raise
            raise ModelError(f"{error}\n" + OTHERWISE.format(url=self.service.url, model=self.model)) from None
        self._logprobs(answer, wanted)
        read = answer["choices"][0].get("prompt_token_ids")
        own = self.tokenizer.encode(sample, add_special_tokens=False)
        if read is not None and read != own:
            raise ModelError(
                f"{self.model} at {self.service.url} reads text by other tokens than '{tokenizer_of}'. Give --model "
                "the name or the directory of the model that is served there."
            )


def _chosen(service: Service, served: str | None) -> tuple[str, int]:
    """The name of the model to ask, and the most tokens that it reads."""
    cards = {str(card["id"]): card for card in service.models()}
    if served is None and len(cards) == 1:
        served = next(iter(cards))
    if served not in cards:
        what = "serves several models" if served is None else f"does not serve '{served}'"
        names = ", ".join(map(repr, cards)) or "none is there"
        raise ConfigError(f"{service.url} {what}. Give --served one of: {names}.")
    lengths = [card["max_model_len"] for card in cards.values() if card.get("max_model_len")]  # an adapter has none
    return served, int(cards[served].get("max_model_len") or min(lengths, default=2048))
