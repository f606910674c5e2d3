"""What many tests need and no download gives: a tiny tokenizer, a tiny model, a nasty catalog, a plain trie.

`PlainTrie` is the tests' own oracle: nested dictionaries, one token a step, nothing shared with the package.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.ragged import TokenLists

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRANDS = ("OPI", "Revlon", "Dove", "L'Oréal", "Burt's Bees", "Neutrogena")
KINDS = ("Nail Lacquer", "Shampoo", "Hand Cream", "Lip Balm", "Body Wash", "Eye Liner", "Face Mask")
EXTRAS = ("", ", Red", ", 0.5-Fluid Ounce", " (Pack of 2)", " for Dry Hair", " SPF 30 & Tint", ", 250 ml")


def product_titles(n: int, seed: int = 0) -> list[str]:
    """Return n product-like titles."""
    draw = random.Random(seed)
    return [f"{draw.choice(BRANDS)} {draw.choice(KINDS)}{draw.choice(EXTRAS)}" for _ in range(n)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of about 500 tokens with ChatML, as GPT-2 and SmolLM2 have it, on product titles."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{title}\n" for title in product_titles(400)], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHATML
    return wrapped


def build_model(vocabulary: int, seed: int = 0, head_dim: int = 16) -> LlamaForCausalLM:
    """Build a random two-layer Llama with grouped-query attention whose next-token distributions are peaked."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=2048,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


def save_tiny_model(directory: Path, head_dim: int = 16) -> Path:
    """Write model and tokenizer as transformers reads them; returns the directory."""
    tokenizer = build_tokenizer()
    build_model(len(tokenizer), head_dim=head_dim).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def build_catalog() -> Catalog:
    """Thirty items with every difficulty a title has: see the comments."""
    hard = [
        "Dove Shampoo",  # begins the next two
        "Dove Shampoo for Dry Hair",
        "Dove Shampoo for Dry Hair, 250 ml",
        "OPI Nail Lacquer, Red",
        "OPI Nail Lacquer, Red",  # a duplicate
        "OPI  Nail\tLacquer, Red",  # the same once white space is folded
        "",  # no title: its id stands in
        "   ",
        f"Bath {END} &amp; Body {START}user",  # control tokens and an HTML entity as text
        "Soap &lt;b&gt;Bar&lt;/b&gt; &#39;Rose&#39;",
        "Night Cream " + "with aloe, jojoba and zinc " * 12,  # about 300 tokens
        "Lip Balm 🍓💄 Sweet",
        "שמפו לשיער יבש",
        "كريم اليدين",
        "A",
        "42",
    ]
    ordinary = [title for title in dict.fromkeys(product_titles(60, seed=1)) if title not in hard]
    titles = hard + ordinary[: 30 - len(hard)]
    brands = [title.split()[0] if i % 3 and title.strip() else "" for i, title in enumerate(titles)]
    return Catalog([f"item-{i}" for i in range(len(titles))], titles, {"brand": brands})


class PlainTrie:
    """Nested dictionaries: node = {token: node}; a title ends in an empty dictionary."""

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.sequences = [[int(token) for token in sequence] for sequence in sequences]
        self.root: dict[int, Any] = {}
        for sequence in self.sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})

    def decisions(self, sequence: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Positions of a title at which another token could stand, and the tokens that can; the start always counts."""
        node, found = self.root, []
        for at, token in enumerate(sequence):
            if at == 0 or len(node) > 1:
                found.append((at, sorted(node)))
            node = node[token]
        return found

    def score(self, sequence: Sequence[int], logprobs_after: Callable[[int], np.ndarray]) -> float:
        """Renormalised log p of a title; logprobs_after(n) are the (vocabulary,) log-probs after its first n tokens."""
        total = 0.0
        for at, tokens in self.decisions(sequence):
            row = logprobs_after(at)
            total += float(row[sequence[at]]) - math.log(math.fsum(math.exp(row[token]) for token in tokens))
        return total


@torch.inference_mode()
def logprob_rows(model, prompt: list[int], answer: list[int]) -> np.ndarray:
    """(answer, vocabulary) log-probs before each token of the answer, from one forward of prompt and answer."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    return torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1].numpy()


def oracle_scores(model, prompt: list[int], answers: list[list[int]], scoring: str = "renormalised") -> np.ndarray:
    """(items,) scores, each title read to its end in a forward of its own."""
    if scoring == "joint":
        return np.array([logprob_rows(model, prompt, a)[np.arange(len(a)), a].sum() for a in answers])
    plain = PlainTrie(answers)
    return np.array([plain.score(a, logprob_rows(model, prompt, a).__getitem__) for a in answers])


def as_lists(texts: TokenLists) -> list[list[int]]:
    return [texts[i].tolist() for i in range(len(texts))]
