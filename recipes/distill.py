"""A hosted teacher, a local student: answers to the train sessions become what a LoRA learns.

seqrec-prompt hosted generate --data runs/data --model MODEL --prices prices.yaml --part train --n 5 \
      --out runs/teacher.parquet
python recipes/distill.py --data runs/data --answers runs/teacher.parquet --out runs/distilled
seqrec-prompt finetune  --data runs/distilled --model smollm2 --objective last_item --out runs/student
seqrec-prompt recommend --data runs/data --model smollm2 --adapter runs/student --out runs/student.parquet
"""

from seqrec_prompt.cli import run

if __name__ == "__main__":
    raise SystemExit(run("distill"))
