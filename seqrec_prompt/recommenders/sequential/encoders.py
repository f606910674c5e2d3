"""What reads a session: (B, L, d) item vectors, padded on the right, to (B, L, d) states.

Positions are counted from the end of a session, so that the newest item is always at the same one.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from seqrec_prompt.recommenders.sequential.settings import SequentialConfig

# What weights that are not to matter at the start 'average' keep of a random start's size.
QUIET = 0.1


class Positions(nn.Module):
    """Adds a learned vector for the place of an item, counted from the end, to item vectors scaled by √d."""

    def __init__(self, config: SequentialConfig, more: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_items + more, config.dim))
        nn.init.xavier_normal_(self.weight)
        self.scale = config.dim**0.5
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """x: (B, L, d), lengths: (B,). Padding gets the last item's place: what is there is read by nobody."""
        from_end = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)
        states: torch.Tensor = self.dropout(x * self.scale + F.embedding(from_end.clamp(min=0), self.weight))
        return states


class Block(nn.Module):
    """A transformer layer, normalised first."""

    def __init__(self, config: SequentialConfig, *, causal: bool) -> None:
        super().__init__()
        d = config.dim
        self.heads, self.rate, self.causal = config.heads, config.dropout, causal
        self.before_attention, self.before_layers = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.layers = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    @torch.no_grad()
    def start_as_average(self) -> None:
        """Let attention give the mean of what it reads: values go through a rotation, the output through its inverse.

        Mimetic initialisation (Trockman & Kolter, 2023), of values and output alone. The layers after it start near 0.
        """
        rotation = nn.init.orthogonal_(torch.empty_like(self.out.weight))
        self.qkv.weight[-len(rotation) :] = rotation
        self.out.weight.copy_(rotation.T)
        self.layers[-1].get_parameter("weight").mul_(QUIET)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x: (B, L, d). mask: of `Transformer.mask`; None: a place reads all, if causal the past."""
        b, length, d = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        rate, causal = self.rate if self.training else 0.0, self.causal and mask is None
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        # (B, heads, L, d / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(b, length, d)))
        states: torch.Tensor = x + self.dropout(self.layers(self.before_layers(x)))
        return states


class Transformer(nn.Module):
    """SASRec (Kang & McAuley, 2018) when causal, else BERT4Rec (Sun et al., 2019), whose sessions end in a mask."""

    def __init__(self, config: SequentialConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.attend_hidden = causal, config.attend_hidden
        self.slopes = config.attention_slopes
        self.positions = Positions(config, more=0 if causal else 1)
        blocks = [Block(config, causal=causal) for _ in range(config.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        if config.layers_start == "average":
            for block in blocks:
                block.start_as_average()

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """x: (B, L, d), hidden: (B, L) True where an item is to be guessed. Returns (B, L, d)."""
        mask = self.mask(lengths, hidden)
        x = self.positions(x, lengths)
        for block in self.blocks:
            x = block(x, mask)
        states: torch.Tensor = self.norm(x)
        return states

    def mask(self, lengths: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor | None:
        """Where one place reads another, or with slopes what is added to that logit of attention.

        (B or 1, heads or 1, L or 1, L); None: all of a session, or of its past if causal.
        """
        length, device = hidden.shape[1], hidden.device
        places = torch.arange(length, device=device)
        real = None
        if not self.causal and (not self.attend_hidden or bool((lengths != length).any())):
            real = (places < lengths[:, None])[:, None, None]
            if not self.attend_hidden:
                real = (real & ~hidden[:, None, None]) | torch.eye(length, dtype=torch.bool, device=device)
        if not self.slopes:
            return real
        apart = places[:, None] - places
        bias = -torch.tensor(self.slopes, device=device)[:, None, None] * apart.abs()
        if self.causal:
            real = apart >= 0
        return bias[None] if real is None else bias.masked_fill(~real, -torch.inf)


class GRU(nn.Module):
    """GRU4Rec (Hidasi et al., 2016) on whole sessions; it needs no positions.

    It reads items at the length of a random start: at `items.scale` times that length its tanh would tell the entries
    of LLM embeddings by little more than their signs.
    """

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        between = config.dropout if config.layers > 1 else 0.0
        self.scale = config.dim**0.5 / config.items.scale
        self.gru = nn.GRU(config.dim, config.dim, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        if config.layers_start == "average":
            self._start_as_average()

    @torch.no_grad()
    def _start_as_average(self) -> None:
        """Let every layer start as h ← (1 − z) tanh(x) + z h with z near ½: newer items weigh more in its average."""
        for name, weight in self.gru.named_parameters():
            reset, update, new = weight.chunk(3)
            reset *= QUIET
            update *= QUIET
            if name.startswith("weight_ih"):
                nn.init.eye_(new)
            else:
                new *= QUIET

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """x: (B, L, d) → (B, L, d)."""
        states: torch.Tensor = self.norm(self.dropout(self.gru(self.dropout(x * self.scale))[0]))
        return states


def build_encoder(kind: str, config: SequentialConfig) -> nn.Module:
    """The encoder of 'sasrec', 'bert4rec' or 'gru4rec'."""
    return GRU(config) if kind == "gru4rec" else Transformer(config, causal=kind == "sasrec")
