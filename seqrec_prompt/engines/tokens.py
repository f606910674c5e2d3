"""How many tokens a text costs at a hosted model: counted by tiktoken, or bounded by its bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from seqrec_prompt.errors import ConfigError, MissingExtraError

INSTALL = 'pip install "seqrec_prompt[openai]"'
BYTES = "bytes"
# OpenAI Cookbook, "How to count tokens with tiktoken": what frames a message, and what opens the answer.
MESSAGE_TOKENS, REPLY_TOKENS, NAME_TOKENS = 3, 3, 1


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens. `exact` is False where every UTF-8 byte counts as one: a bound that is never too low."""

    encoding: str
    count: Callable[[str], int]
    exact: bool

    def chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Tokens of a chat: the texts, what frames each message, and what opens the answer (OpenAI Cookbook)."""
        total = REPLY_TOKENS
        for message in messages:
            total += MESSAGE_TOKENS + sum(self.count(text) for text in message.values())
            total += NAME_TOKENS if "name" in message else 0
        return total


def token_counter(model: str, encoding: str | None = None) -> TokenCounter:
    """Counter of a model's tokens; `encoding` is the name of a tiktoken encoding, or 'bytes' for the bound.

    Raises ConfigError when no encoding is known for the model or tiktoken cannot get it, MissingExtraError without
    tiktoken.
    """
    if encoding == BYTES:
        return TokenCounter(BYTES, lambda text: len(text.encode()), exact=False)
    try:
        import tiktoken
    except ImportError:
        raise MissingExtraError("tiktoken", INSTALL) from None
    bound = f"--encoding {BYTES} counts every byte as a token, an upper bound that needs nothing"
    if encoding is None:
        try:
            encoding = tiktoken.encoding_name_for_model(model)
        except KeyError:
            raise ConfigError(
                f"tiktoken does not know whose tokens '{model}' reads. Give --encoding the name of its encoding "
                f"(o200k_base, cl100k_base, …); {bound}."
            ) from None
    try:
        loaded = tiktoken.get_encoding(encoding)
    except ValueError:
        known = ", ".join(tiktoken.list_encoding_names())
        raise ConfigError(f"tiktoken has no encoding '{encoding}' (it has: {known}); {bound}.") from None
    except OSError as error:  # every error of the download is one
        raise ConfigError(
            f"tiktoken cannot download its encoding '{encoding}' ({type(error).__name__}). Set TIKTOKEN_CACHE_DIR to a "
            f"directory that has it from another machine; or {bound}."
        ) from None
    return TokenCounter(encoding, lambda text: len(loaded.encode_ordinary(text)), exact=True)
