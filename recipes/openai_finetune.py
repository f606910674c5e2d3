"""Fine-tune a model at OpenAI, or at a service that speaks its protocol: quote, agree, pay once.

python recipes/openai_finetune.py --data runs/data --model MODEL --prices prices.yaml --max-cost 5 --out runs/tuned
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("hosted finetune"))
