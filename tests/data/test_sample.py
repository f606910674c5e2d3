"""The bundled sample: complete, small, and cut again from its source."""

import gzip
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from seqrec_prompt.data import SAMPLE
from seqrec_prompt.data.prepare import PrepareConfig, prepare

ROOT = Path(__file__).parents[2]
SOURCE = ROOT.parent / "shared" / "data" / "online_retail" / "online_retail.csv.gz"
FILES = ("interactions.csv.gz", "items.csv.gz")


def cut(out):
    recipe = ROOT / "recipes" / "cut_sample.py"
    subprocess.run([sys.executable, str(recipe), "--source", str(SOURCE), "--out", str(out)], check=True)


def test_the_sample_prepares(tmp_path):
    dataset = prepare(
        PrepareConfig(
            interactions=str(SAMPLE / "interactions.csv.gz"),
            items=str(SAMPLE / "items.csv.gz"),
            time_column="timestamp",
            ties="file",
            title_case="sentence",
            out=tmp_path / "out",
        )
    )
    facts = dataset.manifest["facts"]
    assert (facts["sessions"], facts["items"], facts["interactions"]) == (2_490, 1_992, 62_005)
    assert (len(dataset.split.train), len(dataset.split.test)) == (1_992, 498)
    assert facts["dropped"] == {}
    assert dataset.catalog.titles[dataset.catalog.index["85123A"]] == "White hanging heart t-light holder"


def test_the_sample_is_what_its_readme_says():
    with gzip.open(SAMPLE / "interactions.csv.gz", "rt") as stream:
        rows = [line.rstrip("\n").split(",") for line in stream][1:]
    pairs = [(session, item) for session, item, _ in rows]
    assert len(set(pairs)) == len(pairs)
    assert min(Counter(session for session, _ in pairs).values()) >= 3
    assert min(Counter(item for _, item in pairs).values()) >= 5
    assert sum((SAMPLE / name).stat().st_size for name in FILES) < 2_000_000
    assert "https://doi.org/10.24432/C5BW33" in (SAMPLE / "LICENSE.md").read_text()
    assert f"{len({s for s, _ in pairs}):,} baskets" in (SAMPLE / "README.md").read_text()


@pytest.mark.skipif(not SOURCE.exists(), reason="the Online Retail data is not beside this checkout")
def test_the_sample_is_cut_again_byte_for_byte(tmp_path):
    cut(tmp_path / "one")
    cut(tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        # Compressed bytes may differ between builds of zlib, so the bundled files are compared unpacked.
        assert gzip.decompress((tmp_path / "one" / name).read_bytes()) == gzip.decompress((SAMPLE / name).read_bytes())
