"""Train SASRec, BERT4Rec or GRU4Rec, with or without LLM embeddings, on one device or many.

accelerate launch recipes/train_sequential.py --data runs/data --recommender sasrec --out runs/sasrec
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("fit"))
