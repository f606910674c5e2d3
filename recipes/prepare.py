"""Read interactions and items, check them, split them.

python recipes/prepare.py --config recipes/configs/quickstart.yaml
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("prepare"))
