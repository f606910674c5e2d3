"""Settings of the sequential models. Apart from the models, so that `--help` need not load torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seqrec_prompt.config import Config


class ItemsConfig(Config):
    """Where the vectors of the items come from; all but 'random' need `--embeddings`."""

    start: Literal["random", "llm_init", "adapter", "alphafuse"] = Field(
        "random",
        description="learned from a random start; learned from reduced LLM embeddings (LLM2BERT4Rec; Harte et al., "
        "2023); frozen LLM embeddings under a learned adapter; frozen leading directions of the LLM embeddings beside "
        "learned ones (AlphaFuse; Hu et al., 2025)",
    )
    reduction: Literal["pca", "whiten_pca", "random_projection", "lda"] = Field(
        "whiten_pca", description="llm_init only: how LLM embeddings come down to 'dim'"
    )
    attribute: str | None = Field(None, description="catalog attribute that holds the classes of reduction 'lda'")
    frozen: float = Field(0.5, gt=0, lt=1, description="alphafuse only: share of 'dim' that stays as the LLM has it")
    scale: float = Field(
        1.0,
        gt=0,
        description="llm_init, alphafuse: length of the LLM embeddings, in lengths of a random start; the longer they "
        "are, the less of them training changes or outweighs",
    )
    permuted: bool = Field(
        False, description="control: give each item the LLM embedding of another, drawn with --sequential.seed"
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> ItemsConfig:
        if (self.start == "llm_init" and self.reduction == "lda") != (self.attribute is not None):
            raise ValueError("'attribute' and reduction 'lda' of start 'llm_init' need each other")
        if self.start == "random" and self.permuted:
            raise ValueError("'permuted' is the control of LLM embeddings; start 'random' has none")
        if self.start in ("random", "adapter") and self.scale != 1:
            raise ValueError(f"'scale' is of the vectors of start 'llm_init' and 'alphafuse', not of '{self.start}'")
        return self


class SequentialConfig(Config):
    """Settings of SASRec, BERT4Rec and GRU4Rec."""

    dim: int = Field(64, ge=1, description="width of items and layers")
    layers: int = Field(2, ge=1, description="layers of the encoder")
    heads: int = Field(1, ge=1, description="attention heads; not used by gru4rec")
    layers_start: Literal["random", "average"] = Field(
        "random",
        description="layers at random; or such that a session starts near the mean of its items, for gru4rec of its "
        "newest ones, so that LLM embeddings count from the first step (after Trockman & Kolter, 2023)",
    )
    attention_slopes: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (),
        description="one number a head, taken from its logits for every place that an item is farther away (ALiBi; "
        "Press et al., 2022); none: attention knows how far only by the vectors of places; not used by gru4rec",
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="of item vectors, attention and layers")
    max_items: int = Field(50, ge=1, description="newest items of a session that are read")
    items: ItemsConfig = ItemsConfig()

    temperature: float | None = Field(
        None, gt=0, description="score by the cosine of state and item over this; none: by their dot product"
    )
    loss: Literal["softmax", "sampled_softmax", "gbce"] = Field(
        "softmax",
        description="cross-entropy over all items, never whole in memory; over the target and 'negatives' (for "
        "millions of items); binary cross-entropy with 'negatives', calibrated (gSASRec; Petrov & Macdonald, 2023)",
    )
    negatives: int = Field(256, ge=1, description="sampled_softmax, gbce: items drawn uniformly for every target")
    calibration: float = Field(0.75, ge=0, le=1, description="t of gbce: 0 is plain BCE, 1 fully calibrated")
    mask_probability: float = Field(0.2, gt=0, lt=1, description="bert4rec only: share of items to be guessed")
    mask_last: float = Field(
        0.1,
        ge=0,
        le=1,
        description="bert4rec only: share of sessions that end with an item drawn each epoch, which alone is to be "
        "guessed: as when recommending",
    )

    attend_hidden: bool = Field(
        True,
        description="bert4rec only: let items attend to hidden ones, which say nothing but where they are; false: "
        "each is read by itself alone, so that training reads sessions as recommending does",
    )

    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    clip_norm: float | None = Field(None, gt=0, description="longest gradient; none: as it comes")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="judge and keep an exponential moving average of the weights, of which a step leaves this share; "
        "none: the weights as the last step left them",
    )
    batch_size: int = Field(128, ge=1, description="sessions a step, over all devices")
    epochs: int = Field(200, ge=1, description="passes over the sessions at most")
    patience: int | None = Field(
        10,
        ge=1,
        description="epochs without a better validation NDCG@20 before training ends; none: train all epochs, "
        "without validation, and keep the last",
    )
    validation_sessions: int = Field(
        2000, ge=1, description="sessions judged each epoch: of the validation part, or else a tenth held out of train"
    )
    exclude_seen: bool = Field(True, description="leave a session's own items out of the validation lists")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the matrix products while training: on a CPU those of the full softmax alone, and in float32 "
        "where it has no instructions for bfloat16",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="start of the weights, order, dropout, masks and negatives")

    @model_validator(mode="after")
    def _width_can_be_shared(self) -> SequentialConfig:
        if self.dim % self.heads:
            raise ValueError(f"'dim' {self.dim} is no multiple of 'heads' {self.heads}")
        if self.attention_slopes and len(self.attention_slopes) != self.heads:
            raise ValueError(f"'attention_slopes' has {len(self.attention_slopes)} numbers for {self.heads} 'heads'")
        if self.dim == 1 and self.items.start == "alphafuse":
            raise ValueError("start 'alphafuse' needs a 'dim' of 2 or more: one part is frozen, one learned")
        return self
