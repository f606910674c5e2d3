"""Decode recommendations for every test session, always from the catalog.

python recipes/recommend.py --config recipes/configs/quickstart.yaml
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("recommend"))
