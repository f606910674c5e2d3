"""GenItem prompts: a session's items, one a line, then the next item.

Two layouts. `ask` is the paper's (Harte et al., RecSys'23, LLMSeqPrompt GenItem): the session stands in the prompt and
the model answers with one title. `continue` lets the session be the beginning of a list that the model goes on with:
one training sequence then teaches every item after the first.

Text becomes tokens once per item, in the context it will stand in, and never as control: a title that contains
`<|im_end|>` is read as those characters. A prompt is then a concatenation of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from seqrec_prompt.config import Config
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.ragged import IntArray, TokenLists, offsets_of

NEWLINE = "\n"
# Stands for the session while the chat template is rendered; the text around it is what the model sees.
PLACE = "\x02session\x03"
# Titles tokenised at once: token ids as Python integers take ten times the memory of an array.
BLOCK = 8192


class TemplateConfig(Config):
    """How a session is written."""

    name: Literal["GenItem"] = Field("GenItem", description="prompt variant")
    layout: Literal["continue", "ask"] = Field(
        "continue", description="'continue': the session is a list the model goes on with; 'ask': prompt and answer"
    )
    chat: bool = Field(False, description="write the prompt through the model's chat template")
    instruction: str = Field("One shopping session, one item per line:", description="first line of the prompt")
    question: str = Field("The next item of this session:", description="last line of the prompt, layout 'ask' only")
    attributes: tuple[str, ...] = Field((), description="catalog attributes written in brackets after each title")
    max_items: int = Field(20, ge=1, description="most recent items of a session that are written")

    @field_validator("instruction", "question")
    @classmethod
    def _one_paragraph(cls, text: str) -> str:
        if PLACE in text or not text.strip():
            raise ValueError("must be some text")
        return text


@dataclass(frozen=True, eq=False)
class Prompter:
    """A template compiled for one catalog and one tokenizer.

    head, tail: token ids around the session. lines: each item as a line of the session. answers: each item as it is
    generated, end token included. In layout `continue` a line and an answer are the same tokens.
    """

    template: TemplateConfig
    head: IntArray
    tail: IntArray
    lines: TokenLists
    answers: TokenLists
    end_token: int | None

    def room(self, context: int) -> int:
        """Tokens left for the session when the longest answer must still fit; TemplateError when none are."""
        left = context - len(self.head) - len(self.tail) - int(self.answers.lengths.max())
        if left < int(self.lines.lengths.max()):
            raise TemplateError(
                f"A context of {context} tokens is too short: the template takes {len(self.head) + len(self.tail)}, "
                f"the longest title (item {int(self.answers.lengths.argmax())} of the catalog) "
                f"{int(self.answers.lengths.max())}. Raise it with --context."
            )
        return left

    def fitting(self, sessions: Sessions, context: int) -> Sessions:
        """Keep of each session the most recent items that fit; the oldest go first, a title is never cut."""
        sessions = sessions.last(self.template.max_items)
        sizes = self.lines.lengths[sessions.items]
        ends = offsets_of(sizes)
        # Tokens from an entry to the end of its session: falling within a session, so what fits is a suffix.
        rest = ends[sessions.offsets[1:]][sessions.rows] - ends[:-1]
        return sessions.select_items(rest <= self.room(context))

    def prompt(self, items: IntArray) -> IntArray:
        """Token ids (tokens,) of the prompt that asks for the item after `items`."""
        return np.concatenate([self.head, *(self.lines[item] for item in items), self.tail])


def compile_template(template: TemplateConfig, catalog: Catalog, tokenizer: Any) -> Prompter:
    """Tokenise a template's frame and every item in the context they will stand in.

    `tokenizer` is a Hugging Face tokenizer. Raises TemplateError when the model has no chat template but one is wanted,
    or when the tokenizer joins a title with the line break before it.
    """
    before, after = _frame(template, tokenizer)
    texts = catalog.texts(template.attributes)
    lines = _tokenise(tokenizer, texts, NEWLINE)
    head = tokenizer(before, add_special_tokens=not template.chat)["input_ids"]
    if template.layout == "continue":
        return Prompter(template, _ids(head), _ids([]), lines, lines, None)
    tail = tokenizer(NEWLINE + after, add_special_tokens=False)["input_ids"]
    newline = tokenizer(NEWLINE, add_special_tokens=False)["input_ids"]
    if tail[: len(newline)] != newline:
        raise TemplateError("The tokenizer joins the line break before the question with what follows it.")
    end_token = _end_token(template, tokenizer)
    # The answer is the title alone: attributes help to read a session, they are not to be generated.
    titles = _tokenise(tokenizer, catalog.texts(), "")
    tokens = np.insert(titles.tokens, titles.offsets[1:], end_token).astype(np.int32)
    answers = TokenLists(tokens, offsets_of(titles.lengths + 1))
    return Prompter(template, _ids(head), _ids(tail[len(newline) :]), lines, answers, end_token)


def messages(template: TemplateConfig, lines: Sequence[str]) -> list[dict[str, str]]:
    """Write a prompt as chat messages; `lines` are the session's items."""
    if template.layout == "continue":
        opening = [{"role": "user", "content": template.instruction}]
        return (
            [*opening, {"role": "assistant", "content": "".join(line + NEWLINE for line in lines)}]
            if lines
            else opening
        )
    content = NEWLINE.join([template.instruction, *lines, template.question])
    return [{"role": "user", "content": content}]


def text(template: TemplateConfig, lines: Sequence[str]) -> str:
    """Write a prompt as plain text; `lines` are the session's items."""
    tail = [template.question] if template.layout == "ask" else []
    return "".join(line + NEWLINE for line in [template.instruction, *lines, *tail])


def _frame(template: TemplateConfig, tokenizer: Any) -> tuple[str, str]:
    """Text before the session's first line and after its last, as the model sees it."""
    if not template.chat:
        before, after = text(template, [PLACE]).split(PLACE + NEWLINE)
        return before, after
    if not tokenizer.chat_template:
        raise TemplateError("This model has no chat template. Set template.chat to false.")
    if template.layout == "continue":
        rendered = tokenizer.apply_chat_template(messages(template, []), tokenize=False, add_generation_prompt=True)
        return str(rendered), ""
    rendered = tokenizer.apply_chat_template(messages(template, [PLACE]), tokenize=False, add_generation_prompt=True)
    if rendered.count(PLACE + NEWLINE) != 1:
        raise TemplateError("The model's chat template does not keep the user's message as it is.")
    before, after = rendered.split(PLACE + NEWLINE)
    return before, after


def _end_token(template: TemplateConfig, tokenizer: Any) -> int:
    """The token that ends an answer: what the chat template writes after it, else the tokenizer's end token."""
    if template.chat:
        turn = [*messages(template, [PLACE]), {"role": "assistant", "content": PLACE}]
        closing = tokenizer.apply_chat_template(turn, tokenize=False).rpartition(PLACE)[2]
        ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
        # An end of turn need not be one of the tokenizer's named special tokens.
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        if ids and ids[0] in special:
            return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise TemplateError("The tokenizer has no end token. Use template.layout 'continue'.")
    return int(tokenizer.eos_token_id)


def _tokenise(tokenizer: Any, texts: Sequence[str], end: str) -> TokenLists:
    """Tokenise texts as they stand after a line break and before `end`, special tokens inside them as plain text."""
    context = tokenizer(NEWLINE, add_special_tokens=False)["input_ids"]
    parts = []
    for start in range(0, len(texts), BLOCK):
        block = [NEWLINE + item + end for item in texts[start : start + BLOCK]]
        encoded = tokenizer(block, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for i, ids in enumerate(encoded):
            if ids[: len(context)] != context or len(ids) == len(context):
                item = start + i
                raise TemplateError(f"The tokenizer joins a line break with the title {texts[item]!r} (item {item}).")
        parts.append(TokenLists.of([ids[len(context) :] for ids in encoded]))
    return TokenLists.join(parts)


def _ids(tokens: Sequence[int]) -> IntArray:
    return np.array(tokens, dtype=np.int32)
