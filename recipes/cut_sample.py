"""Cut the bundled sample from the Online Retail dataset, byte for byte the same every time.

python recipes/cut_sample.py --source online_retail.csv.gz --out seqrec_prompt/data/sample
python recipes/cut_sample.py --source online_retail.csv.gz --whole --out runs/retail/raw
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

BASKETS = 2_500
SHORTEST_BASKET = 3
RAREST_ITEM = 5

Basket = dict[str, str]  # item id → time of its first row, in order of entry


def read_baskets(source: Path) -> tuple[dict[str, Basket], dict[str, str]]:
    """Return the baskets of known customers by invoice, and the most frequent description of each product."""
    baskets: dict[str, Basket] = defaultdict(dict)
    descriptions: dict[str, Counter[str]] = defaultdict(Counter)
    with gzip.open(source, "rt", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            item = row["StockCode"]
            cancelled = row["InvoiceNo"].startswith("C")
            sold = float(row["Quantity"]) > 0 and float(row["UnitPrice"]) > 0
            # Codes that do not begin with a digit are postage, fees and the like.
            if cancelled or not sold or not row["CustomerID"] or not row["Description"] or not item[:1].isdigit():
                continue
            descriptions[item][row["Description"]] += 1
            baskets[row["InvoiceNo"]].setdefault(item, row["InvoiceDate"])
    return baskets, {item: counts.most_common(1)[0][0] for item, counts in descriptions.items()}


def long_enough(baskets: dict[str, Basket]) -> dict[str, Basket]:
    """Drop short baskets."""
    return {invoice: basket for invoice, basket in baskets.items() if len(basket) >= SHORTEST_BASKET}


def cut(long: dict[str, Basket]) -> dict[str, Basket]:
    """Take the latest baskets, then drop rare items and short baskets until none is left to drop."""
    latest = sorted(long, key=lambda invoice: max(long[invoice].values()))[-BASKETS:]
    kept = {invoice: long[invoice] for invoice in latest}
    while True:
        counts = Counter(item for basket in kept.values() for item in basket)
        size = sum(counts.values())
        kept = {
            invoice: {item: time for item, time in basket.items() if counts[item] >= RAREST_ITEM}
            for invoice, basket in kept.items()
        }
        kept = long_enough(kept)
        if sum(map(len, kept.values())) == size:
            return kept


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a gzipped CSV that depends on nothing but its content."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def main() -> None:
    """Parse the command line, cut, write, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="online_retail.csv.gz, as published")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--whole", action="store_true", help="all baskets and items, not a sample of them")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    baskets, titles = read_baskets(options.source)
    kept = long_enough(baskets)
    if not options.whole:
        kept = cut(kept)
    rows = [
        (invoice, item, str(int(datetime.fromisoformat(time).replace(tzinfo=UTC).timestamp())))
        for invoice, basket in kept.items()
        for item, time in basket.items()
    ]
    items = sorted({item for _, item, _ in rows})
    write(options.out / "interactions.csv.gz", ("session_id", "item_id", "timestamp"), rows)
    write(options.out / "items.csv.gz", ("item_id", "title"), [(item, titles[item]) for item in items])
    print(f"{len(kept):,} sessions, {len(items):,} items, {len(rows):,} interactions")


if __name__ == "__main__":
    main()
