"""The prefixes that a search holds: open ones, to be read on, and complete ones, which are titles."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from seqrec_prompt.ragged import LongArray

FloatArray = npt.NDArray[np.float64]


@dataclass(eq=False)
class Prefixes:
    """Prefixes of many sessions as parallel arrays (prefixes,).

    session. node: the trie node whose edge the prefix has entered. read: tokens of its path the engine has read; the
    token after them is scored already. slot: the engine's slot of the last token read. score: log-probability. bound:
    the most that a title below can score. weight: eligible items below. fresh: made in its session's last round.
    """

    session: LongArray
    node: LongArray
    read: LongArray
    slot: LongArray
    score: FloatArray
    bound: FloatArray
    weight: LongArray
    fresh: npt.NDArray[np.bool_]

    @classmethod
    def none(cls) -> Prefixes:
        """No prefixes."""
        whole, real = np.empty(0, np.int64), np.empty(0)
        return cls(whole, whole, whole, whole, real, real, whole, np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.session)

    def __getitem__(self, which: npt.NDArray[np.bool_] | LongArray) -> Prefixes:
        return Prefixes(*(getattr(self, field.name)[which] for field in fields(self)))

    def __add__(self, other: Prefixes) -> Prefixes:
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Prefixes(*(np.concatenate(pair) for pair in pairs))

    def kth(self, k: LongArray, sessions: int) -> FloatArray:
        """(sessions,) bound of each session's k-th best item, k of each (sessions,); -inf while there are fewer."""
        order = np.lexsort((-self.bound, self.session))
        session = self.session[order]
        total = np.cumsum(self.weight[order])
        before = np.concatenate([[0], total])[np.searchsorted(session, np.arange(sessions))]
        reached = total - before[session] >= k[session]
        worst = np.full(sessions, -np.inf)
        np.maximum.at(worst, session[reached], self.bound[order][reached])
        return worst

    def best(self, width: int, cost: LongArray, room: LongArray, deep: npt.NDArray[np.bool_]) -> LongArray:
        """Positions of each session's `width` best prefixes, as far as `cost` (prefixes,) fits `room` (sessions,).

        Best is highest bound; where `deep` (sessions,) those of the last round come first, as in a beam search.
        """
        first_choice = self.fresh & deep[self.session]
        order = np.lexsort((-self.bound, ~first_choice, self.session))
        session = self.session[order]
        start = np.searchsorted(session, np.arange(len(room)))
        total = np.concatenate([[0], np.cumsum(cost[order])])
        fits = total[1:] - total[start[session]] <= room[session]
        chosen: LongArray = order[(np.arange(len(order)) - start[session] < width) & fits]
        return chosen
