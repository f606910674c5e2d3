"""Train an adapter on by DPO, on one device or many.

accelerate launch recipes/prefer.py --config prefer.yaml
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("prefer"))
