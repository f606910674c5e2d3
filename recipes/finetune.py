"""LoRA-fine-tune an LLM on prepared sessions, on one device or many.

accelerate launch recipes/finetune.py --config recipes/configs/quickstart.yaml
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("finetune"))
