"""Prompts as tokens: a template compiled for one catalog and one tokenizer.

Text becomes tokens once per item, in the context it will stand in, and never as control: a title that contains
`<|im_end|>` is read as those characters. A prompt is then a concatenation of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.prompting.templates import NEWLINE, OFFER, PLACE, TemplateConfig, messages, text
from seqrec_prompt.prompting.titles import shorten
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, places

ARROW, COMMA = "->", ";"  # before the first companion of an item, and between them
# Of a context, less the template, this is the most that lists may take; the session has the rest.
LISTS_SHARE = 0.5
# Titles tokenised at once: token ids as Python integers take ten times the memory of an array.
BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Prompter:
    """A template compiled for one catalog and one tokenizer.

    head, tail: token ids around the session. offer: those between session and candidates, Rank only. lines: each item
    as a line of the prompt. answers: each item, or for Classify each cluster, as it is generated, end token included;
    in a list the line break ends each title and `end_token` the list. In layout `continue` a line begins with its
    answer, and without companions ends there.
    """

    template: TemplateConfig
    head: IntArray
    tail: IntArray
    lines: TokenLists
    answers: TokenLists
    end_token: int | None
    offer: IntArray = field(default_factory=lambda: _ids([]))

    def space(self, context: int) -> int:
        """Tokens that a context leaves beside the template's own."""
        return context - len(self.head) - len(self.offer) - len(self.tail)

    def fitting(
        self, sessions: Sessions, context: int, reserved: LongArray | None = None, flag: str = "--context"
    ) -> Sessions:
        """Keep of each session the most recent items that fit; the oldest go first, a title is never cut.

        reserved: (sessions,) tokens that candidates and answer take, by default those of the longest answer. Raises
        TemplateError when it leaves no room for the longest title; flag: what sets the context, for its message.
        """
        longest = int(self.answers.lengths.argmax())
        taken = np.full(len(sessions), self.answers.lengths[longest]) if reserved is None else reserved
        room = self.space(context) - taken
        if room.min(initial=self.space(context) - self.answers.lengths[longest]) < self.lines.lengths.max():
            kind = "cluster" if self.template.name == "Classify" else "item"
            raise TemplateError(
                f"A context of {context} tokens is too short: the template takes {context - self.space(context)}, the "
                f"longest title ({kind} {longest} of the catalog, from 0) {self.answers.lengths[longest]}, answer and "
                f"choices up to {taken.max(initial=0)}. Raise it with {flag}."
            )
        sessions = sessions.last(self.template.max_items)
        sizes = self.lines.lengths[sessions.items]
        ends = offsets_of(sizes)
        # Tokens from an entry to the end of its session: falling within a session, so what fits is a suffix.
        rest = ends[sessions.offsets[1:]][sessions.rows] - ends[:-1]
        return sessions.select_items(rest <= room[sessions.rows])

    def shortened(self, lists: TokenLists, context: int) -> TokenLists:
        """Keep the first `list_length` items of each list, or as many as half of the space holds, but at least one."""
        place, ends = places(lists.lengths), offsets_of(self.list_cost(lists))
        until = ends[1:] - ends[lists.offsets[:-1]][lists.rows]
        fits = until <= LISTS_SHARE * self.space(context)
        keep = (place < self.template.list_length) & (fits | (place == 0))
        return TokenLists.by_row(lists.rows[keep], lists.tokens[keep], len(lists))

    def list_cost(self, lists: TokenLists) -> LongArray:
        """(entries,) tokens that each item of the lists takes: as an answer and, for Rank, as a candidate."""
        cost: LongArray = self.answers.lengths[lists.tokens]
        return cost + self.lines.lengths[lists.tokens] if self.template.name == "Rank" else cost

    def taken(self, lists: TokenLists) -> LongArray:
        """(lists,) tokens that each list takes of a context, its end token included."""
        return 1 + np.bincount(lists.rows, self.list_cost(lists), len(lists)).astype(np.int64)

    def prompt(self, items: IntArray, candidates: IntArray | None = None) -> IntArray:
        """Token ids (tokens,) of the prompt that asks for what comes after `items`; candidates: Rank only."""
        offered = [] if candidates is None else [self.offer, *(self.lines[item] for item in candidates)]
        return np.concatenate([self.head, *(self.lines[item] for item in items), *offered, self.tail])

    def answer(self, numbers: IntArray) -> list[IntArray]:
        """Tokens of each answer, one after the other; a list is ended by the end token."""
        closing = [_ids([self.end_token])] if self.template.lists and self.end_token is not None else []
        return [*(self.answers[number] for number in numbers), *closing]


def compile_template(
    template: TemplateConfig,
    catalog: Catalog,
    tokenizer: Any,
    clusters: Sequence[str] = (),
    companions: TokenLists | None = None,
) -> Prompter:
    """Tokenise a template's frame and every item in the context they will stand in.

    `tokenizer` is a Hugging Face tokenizer. clusters: their names, Classify only. companions: (items,) those of
    `Dataset.companions`, where the template wants some. Raises TemplateError when the model has no chat template but
    one is wanted, or when the tokenizer joins a title with the line break before it.
    """
    if bool(template.companions) != (companions is not None):
        raise TemplateError(f"template.companions is {template.companions}: give the companions of just as many.")
    if (template.name == "Classify") != bool(clusters):
        raise TemplateError(f"{template.name} has {'no' if clusters else 'only'} clusters for answers.")
    before, offer, after = _frame(template, tokenizer)
    newline = _ids(tokenizer(NEWLINE, add_special_tokens=False)["input_ids"])
    titles = _cut(template, _tokenise(tokenizer, catalog.texts(template.attributes), NEWLINE), newline)
    lines = titles if companions is None else _with_companions(titles, companions, tokenizer, newline)
    head = _ids(tokenizer(before, add_special_tokens=not template.chat)["input_ids"])
    if template.layout == "continue":
        return Prompter(template, head, _ids([]), lines, titles, None)
    tail, middle = _after_line(tokenizer, after), _after_line(tokenizer, offer)
    end_token = _end_token(template, tokenizer)
    # The answer is the title alone: attributes help to read a session, they are not to be generated.
    if template.lists:
        answers = lines
        if template.attributes:
            answers = _cut(template, _tokenise(tokenizer, catalog.texts(), NEWLINE), newline)
    else:
        named = _tokenise(tokenizer, clusters if template.name == "Classify" else catalog.texts(), "")
        tokens = np.insert(named.tokens, named.offsets[1:], end_token)
        answers = TokenLists(tokens, offsets_of(named.lengths + 1))
        if template.name != "Classify":
            answers = _cut(template, answers, _ids([end_token]))
    return Prompter(template, head, tail, lines, answers, end_token, middle)


def _with_companions(titles: TokenLists, companions: TokenLists, tokenizer: Any, newline: IntArray) -> TokenLists:
    """Lines of a title, and below it "->" and the titles of its companions, the same tokens as where they are lines."""
    arrow, comma = (_after_line(tokenizer, sign) for sign in (ARROW, COMMA))
    short = [title[: len(title) - len(newline)] for title in titles]
    lines = []
    for title, following in zip(titles, companions, strict=True):
        parts = [title]
        for place, item in enumerate(following.tolist()):
            parts += [comma if place else arrow, short[item]]
        lines.append(np.concatenate([*parts, newline] if len(parts) > 1 else parts))
    return TokenLists(np.concatenate(lines).astype(np.int32), offsets_of([len(line) for line in lines]))


def _cut(template: TemplateConfig, titles: TokenLists, end: IntArray) -> TokenLists:
    return titles if template.title_tokens is None else shorten(titles, template.title_tokens, end)


def _frame(template: TemplateConfig, tokenizer: Any) -> tuple[str, str, str]:
    """Text before the session's first line, between session and candidates, and after all, as the model sees it."""
    if not template.chat:
        rendered = text(template, [PLACE], [OFFER])
    elif not tokenizer.chat_template:
        raise TemplateError("This model has no chat template. Set template.chat to false.")
    elif template.layout == "continue":
        rendered = tokenizer.apply_chat_template(messages(template, []), tokenize=False, add_generation_prompt=True)
        return str(rendered), "", ""
    else:
        asked = messages(template, [PLACE], [OFFER])
        rendered = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    if rendered.count(PLACE + NEWLINE) != 1 or rendered.count(OFFER + NEWLINE) != (template.name == "Rank"):
        raise TemplateError("The model's chat template does not keep the user's message as it is.")
    before, after = rendered.split(PLACE + NEWLINE)
    offer, _, after = after.rpartition(OFFER + NEWLINE)
    return before, offer, after


def _after_line(tokenizer: Any, text: str) -> IntArray:
    """Tokens of a part of the frame as it stands after a line break."""
    newline = tokenizer(NEWLINE, add_special_tokens=False)["input_ids"]
    ids = tokenizer(NEWLINE + text, add_special_tokens=False)["input_ids"]
    if ids[: len(newline)] != newline:
        raise TemplateError("The tokenizer joins the line break after a title with the question that follows it.")
    return _ids(ids[len(newline) :])


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
