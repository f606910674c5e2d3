"""Turn every item of the catalog into a vector, with the LLM that was tuned or another.

python recipes/embed.py --data runs/data --model smollm2 --out runs/embeddings
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("embed"))
