"""The page of `demo`. Titles are data of strangers: they reach the page as text, never as markup."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.serving.ready import Question, Ready
from seqrec_prompt.serving.why import Nearness

MATCHES = 12  # titles that a search shows
MOST = 50  # items of a list
CSS = """
.lists {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); gap: 1rem}
.lists section {border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .75rem 1rem; min-width: 0}
.lists h3, .session h3 {margin: 0 0 .25rem; font-size: 1.05rem}
.lists ol, .session ol {margin: .5rem 0 0; padding-left: 1.6rem; list-style: decimal}
.lists li, .session li {margin: .35rem 0; overflow-wrap: anywhere}
.session ol {max-height: 16rem; overflow-y: auto; padding-left: 2.4rem}
.start {padding: .75rem 1rem}
.start h2 {margin: 0 0 .25rem; font-size: 1.3rem}
.lists small, .proof {display: block; font-size: .85rem; opacity: .75}
.proof {margin: 0}
"""


class Lists:
    """What the page asks for: matches of a search, a session in words, and the lists for it."""

    def __init__(self, ready: Mapping[str, Ready], data: Dataset, nearness: Nearness) -> None:
        self.ready, self.data, self.nearness = ready, data, nearness
        self.titles = data.catalog.texts()
        self._folded = [title.casefold() for title in self.titles]
        self._one_at_once = threading.Lock()

    def matches(self, words: str) -> list[tuple[str, str]]:
        """(label, position) of titles that hold every word, the most popular first."""
        wanted = words.casefold().split()
        if not wanted:
            return []
        found = [i for i, title in enumerate(self._folded) if all(word in title for word in wanted)]
        found.sort(key=lambda i: -self.data.popularity[i])
        return [(f"{self.titles[i]}  ({self.data.catalog.ids[i]})", str(i)) for i in found[:MATCHES]]

    def session(self, session: list[int]) -> str:
        """The session as a numbered list, what counts most for what comes next on top."""
        if not session:
            return '<div class="session"><h3>Session</h3><p>Empty: search for a title, or take an example.</p></div>'
        rows = "".join(f"<li>{escape(self.titles[item])}</li>" for item in reversed(session))
        return f'<div class="session"><h3>Session, latest first</h3><ol reversed>{rows}</ol></div>'

    def start(self) -> str:
        """What stands in place of the lists before there is a session."""
        train, names = self.data.split.train, ", ".join(f"<b>{escape(name)}</b>" for name in self.ready)
        return (
            f'<div class="start"><h2>What comes next?</h2><p>{len(self.titles):,} items, {len(train):,} sessions to '
            f"learn from. Add titles to a session, or take one that tests: here stands what each recommends: {names}."
            "</p></div>"
        )

    def lists(self, session: list[int], k: int, exclude_seen: bool) -> str:
        """The lists of all recommenders side by side; what one cannot answer is told in its place."""
        question = Question(np.array(session, np.int32), int(k), exclude_seen=exclude_seen)
        shown = []
        for name, one in self.ready.items():
            with self._one_at_once:
                (found,) = one.answer([question])
            shown.append(f"<section><h3>{escape(name)}</h3>{self._list(found, question)}</section>")
        return f'<div class="lists">{"".join(shown)}</div>'

    def example(self) -> list[int]:
        """A random test session."""
        prompts = self.data.split.test.prompts
        return prompts[random.randrange(len(prompts))].tolist() if len(prompts) else []  # noqa: S311

    def _list(self, found: Recommendations, question: Question) -> str:
        if not len(found.items):
            return '<p class="proof">Nothing: it knows no item that goes with this session.</p>'
        if found.certified[0]:
            proof = "<b>certified</b>: exactly its best"
        elif np.isfinite(found.gap[0]):
            proof = f"<b>not certified</b>: one not followed could score {found.gap[0]:.2f} above the last"
        else:
            proof = "<b>not certified</b>"
        rows = []
        for item, score, how in zip(found.items.tolist(), found.scores.tolist(), found.provenances, strict=True):
            told = "; ".join([f"{score:.3f}, {escape(str(how))}", *self._why(item, question.session)])
            rows.append(f"<li>{escape(self.titles[item])}<small>{told}</small></li>")
        return f'<p class="proof">{proof}</p><ol>{"".join(rows)}</ol>'

    def _why(self, item: int, session: IntArray) -> list[str]:
        """How the item stands to the session; an empty one has no part in it."""
        if not len(session):
            return []
        found = self.nearness.nearest(item, session)
        near = "; ".join(f"{escape(self.titles[other])} ({cosine:.2f})" for other, cosine in found)
        return ["in the session"] * (item in session) + [f"near {near}" if near else "near nothing else in the session"]


def build_page(ready: Mapping[str, Ready], data: Dataset, vectors: npt.NDArray[np.float32] | None = None) -> Any:
    """The application that shows the page. vectors: (items, dim) by which nearness is told."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and later
    import gradio
    from fastapi import FastAPI

    lists = Lists(ready, data, Nearness(data.split.train, len(data.catalog), vectors))
    system = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # no font is fetched
    theme = gradio.themes.Default(font=system[0], font_mono=system[1], primary_hue="teal")

    def shown(session: list[int], k: int, exclude_seen: bool) -> tuple[list[int], str, str]:
        return session, lists.session(session), lists.lists(session, k, exclude_seen)

    def search(words: str) -> Any:
        found = lists.matches(words)
        told = f"the {MATCHES} most popular that match" if len(found) == MATCHES else f"{len(found)} found"
        return gradio.Radio(choices=found, value=None, label=told, visible=bool(words.strip()))

    def add(chosen: str | None, session: list[int], k: int, exclude_seen: bool) -> tuple[Any, ...]:
        longer = [*session, int(chosen)] if chosen is not None else session
        return ("", search(""), *shown(longer, k, exclude_seen))

    with gradio.Blocks(title="seqrec_prompt", analytics_enabled=False, fill_width=True) as blocks:
        session = gradio.State([])
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                words = gradio.Textbox(label="Search titles", placeholder="words of a title", elem_id="search")
                found = gradio.Radio(choices=[], label="titles", visible=False, elem_id="matches")
                with gradio.Row():
                    example = gradio.Button("Example", elem_id="example", min_width=80, size="sm")
                    undo = gradio.Button("Remove last", elem_id="undo", min_width=80, size="sm")
                    clear = gradio.Button("Clear", elem_id="clear", min_width=80, size="sm")
                k = gradio.Slider(1, min(MOST, len(data.catalog)), min(10, len(data.catalog)), step=1, label="Items")
                exclude_seen = gradio.Checkbox(label="Leave out the session's own items", elem_id="exclude")
                told = gradio.HTML(lists.session([]), padding=False)
            with gradio.Column(scale=3, min_width=300):
                answers = gradio.HTML(lists.start(), padding=False, elem_id="answers")
        settings, outputs = [session, k, exclude_seen], [session, told, answers]
        # Without gradio's queue: it loses the answer to a click that comes as its stream of answers ends. Who computes
        # waits for the lock of `lists`.
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        words.change(search, words, found, **quiet, trigger_mode="always_last")
        found.input(add, [found, *settings], [words, found, *outputs], **quiet)
        example.click(lambda *rest: shown(lists.example(), *rest), settings[1:], outputs, **quiet)
        undo.click(lambda old, *rest: shown(old[:-1], *rest), settings, outputs, **quiet)
        clear.click(lambda *rest: shown([], *rest), settings[1:], outputs, **quiet)
        k.release(shown, settings, outputs, **quiet)
        exclude_seen.input(shown, settings, outputs, **quiet)
    return gradio.mount_gradio_app(FastAPI(), blocks, path="/", theme=theme, css=CSS, footer_links=[], ssr_mode=False)
