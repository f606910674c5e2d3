"""Compare recommendation files and baselines: the same as `seqrec-prompt evaluate`.

python eval/evaluate.py --data runs/data --recommendations runs/recs.parquet --out runs/evaluation
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("evaluate"))
