"""What metrics.json holds as tables: Markdown (which is also what the screen shows), CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

# Metric → (heading, decimals).
HEADINGS = {
    "ndcg": ("NDCG", 4),
    "hr": ("hit rate", 4),
    "mrr": ("MRR", 4),
    "coverage": ("coverage", 4),
    "serendipity": ("serendipity", 4),
    "novelty": ("novelty (bits)", 3),
}
Result = Mapping[str, Any]  # what metrics.json holds
# Rows are named by letters in superscripts; Unicode has no superscript q, and not all capitals.
LETTERS = dict(zip("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True))
LETTERS |= dict(zip("ABDEGHIJKLMNOPRTUVW", "ᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂ", strict=True))
SUPERSCRIPT = str.maketrans(LETTERS)
TEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
})  # fmt: skip


def cutoffs(result: Result) -> list[str]:
    """Return the cut-offs as metrics.json names them: '@10', '@20'."""
    return [f"@{k}" for k in result["config"]["cutoffs"]]


def letters(result: Result) -> dict[str, str]:
    """Return the letter of each row; none has one when there is nothing to compare, or more rows than letters."""
    names = [row["name"] for row in result["recommenders"]]
    return dict(zip(names, LETTERS, strict=False)) if 1 < len(names) <= len(LETTERS) else {}


def lower_rows(result: Result, at: str, metric: str) -> dict[str, list[str]]:
    """Return, for each row, the rows that its value is significantly higher than, in the order of the table."""
    names = [row["name"] for row in result["recommenders"]]
    lower: dict[str, set[str]] = {name: set() for name in names}
    level = 1 - result["config"]["statistics"]["confidence"]
    for pair in result["pairs"]:
        compared = pair[at].get(metric)
        if compared and compared["randomisation_holm"] < level:
            both = (pair["first"], pair["second"])
            higher, other = both if compared["difference"] > 0 else both[::-1]
            lower[higher].add(other)
    return {name: [other for other in names if other in lower[name]] for name in names}


def higher_than(result: Result, at: str, metric: str) -> dict[str, str]:
    """Return, for each row, the letters of the rows that its value is significantly higher than."""
    letter = letters(result)
    return {
        name: "".join(letter.get(other, "") for other in others)
        for name, others in lower_rows(result, at, metric).items()
    }


def best(result: Result, at: str, metric: str) -> float:
    """Return the highest value of a column."""
    return max(float(row["metrics"][at][metric]) for row in result["recommenders"])


def markdown(result: Result) -> str:
    """Write one Markdown table per cut-off, recommenders × metrics, whose columns also line up on a screen."""
    letter = letters(result)
    texts = []
    for at in cutoffs(result):
        marks = {metric: higher_than(result, at, metric) for metric in HEADINGS}
        head = [f"top {at[1:]}", *([""] if letter else []), *(heading for heading, _ in HEADINGS.values())]
        body = []
        for row in result["recommenders"]:
            name = row["name"]
            cells = [
                f"{row['metrics'][at][metric]:.{digits}f}{marks[metric][name].translate(SUPERSCRIPT)}"
                for metric, (_, digits) in HEADINGS.items()
            ]
            body.append([_cell(name), *([letter[name]] if letter else []), *cells])
        texts.append(aligned(head, body))
    return "\n".join(texts)


def markdown_intervals(result: Result) -> str:
    """Write the intervals of the values of `markdown` in tables of the same form."""
    texts = []
    for at in cutoffs(result):
        head = [f"top {at[1:]}", *(heading for heading, _ in HEADINGS.values())]
        body = [[_cell(row["name"]), *(interval(row, at, m) for m in HEADINGS)] for row in result["recommenders"]]
        texts.append(aligned(head, body))
    return "\n".join(texts)


def page(result: Result) -> str:
    """Write both kinds of Markdown tables with the notes that belong to them."""
    confidence = f"{result['config']['statistics']['confidence']:.0%} intervals of these values"
    how = "bootstrap over sessions; coverage: jackknife"
    parts = [markdown(result), "\n".join(f"- {note}" for note in result["notes"])]
    return "\n".join([*parts, "", f"{confidence} ({how}):", "", markdown_intervals(result)])


def interval(row: Mapping[str, Any], at: str, metric: str) -> str:
    """Write the interval of one value: '0.0301–0.0342'."""
    return "–".join(f"{bound:.{HEADINGS[metric][1]}f}" for bound in row["intervals"][at][metric])


def comma_separated(result: Result) -> str:
    """Write the table as CSV with full names (`coverage@10`), unrounded values and the bounds of their intervals."""
    columns = [(metric, at) for at in cutoffs(result) for metric in HEADINGS]
    head = [f"{metric}{at}{bound}" for bound in ("", "_low", "_high") for metric, at in columns]
    return _csv(["recommender", *head], [[row["name"], *_values(row, columns)] for row in result["recommenders"]])


def segments(result: Result) -> str:
    """Write a CSV with a row for each recommender in each segment, and bounds where there are intervals."""
    columns = [(m, at) for at in cutoffs(result) for m in HEADINGS if m != "coverage"]
    head = [f"{metric}{at}" for metric, at in columns]
    bounded = [(m, at) for at in cutoffs(result) for m in ("ndcg", "hr", "mrr")]
    head += [f"{metric}{at}_{bound}" for bound in ("low", "high") for metric, at in bounded]
    rows = [
        [part["by"], part["segment"], part["sessions"], row["name"], *_values(row, columns, bounded)]
        for part in result["segments"]
        for row in part["recommenders"]
    ]
    return _csv(["by", "segment", "sessions", "recommender", *head], rows)


def latex(result: Result) -> str:
    r"""Write a LaTeX table per cut-off (needs \usepackage{booktabs}): best values bold, marks as superscripts."""
    letter = letters(result)
    lines = []
    for at in cutoffs(result):
        marks = {metric: higher_than(result, at, metric) for metric in HEADINGS}
        heads = [f"top {at[1:]}", *(heading for heading, _ in HEADINGS.values())]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(HEADINGS)}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
        for row in result["recommenders"]:
            name = row["name"]
            cells = [name.translate(TEX) + (f" ($^{{{letter[name]}}}$)" if letter else "")]
            for metric, (_, digits) in HEADINGS.items():
                value = row["metrics"][at][metric]
                text = f"{value:.{digits}f}"
                text = rf"\textbf{{{text}}}" if value == best(result, at, metric) else text
                cells.append(text + (f"$^{{{marks[metric][name]}}}$" if marks[metric][name] else ""))
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def _values(
    row: Mapping[str, Any], columns: Sequence[tuple[str, str]], bounded: Sequence[tuple[str, str]] | None = None
) -> list[str]:
    values = [row["metrics"][at][metric] for metric, at in columns]
    bounded = columns if bounded is None else bounded
    values += [row["intervals"][at][metric][bound] for bound in (0, 1) for metric, at in bounded]
    return [repr(value) for value in values]


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _cell(name: str) -> str:
    return name.replace("|", "\\|")


def aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table whose columns also line up on a screen, the first to the left."""
    widths = [max(2, *map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(_line(cells, widths) for cells in (head, rule, *body))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |\n"
