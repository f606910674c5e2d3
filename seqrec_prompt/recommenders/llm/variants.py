"""The other variants of LLMSeqPrompt: lists, candidates put in order, clusters (Harte et al., RecSys'23)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrec_prompt.artifacts import hash_json, read_manifest
from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.eligible import BoolArray, Eligible, Filters, one_of_each_title
from seqrec_prompt.decoding.frontier import FloatArray
from seqrec_prompt.decoding.lists import decode_lists
from seqrec_prompt.decoding.search import Found, search
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.embeddings.clusters import CLUSTERS, Clusters
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.prompting.cases import HOW, candidates_of, fitting, in_catalog_order, load_clusters
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of
from seqrec_prompt.recommenders.llm.prompt import LLMSeqPrompt, log_prior
from seqrec_prompt.recommenders.rules import Rules

if TYPE_CHECKING:
    from seqrec_prompt.data.catalog import Catalog
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.huggingface import HuggingFaceEngine
    from seqrec_prompt.engines.served import ServedEngine
    from seqrec_prompt.engines.vllm import VLLMEngine
    from seqrec_prompt.recommenders.llm.settings import LLMConfig

SHOWN, MOST_SHOWN = 20, 500  # titles, and characters of them, that a server is tried with
CHOSEN = 20  # clusters of which a list is made, as in the paper, or as many as the list is long


@dataclass(kw_only=True)
class LLMSeqPromptGenList(LLMSeqPrompt):
    """Recommends the list that the model writes title after title; see `decode_lists` for scores and certificate.

    Titles are distinct: of items that share one, the most popular that a session may be given stands for all.
    """

    name: str = "LLMSeqPromptGenList"

    def _decode(self, sessions: Sessions, k: int, filters: Filters) -> tuple[list[IntArray], Found]:
        shown = fitting(self.prompter, sessions, self.context)
        filters = one_of_each_title(self.trie, len(sessions), filters)
        return self._written([self.prompter.prompt(items) for items in shown], k, filters)

    def _written(self, prompts: list[IntArray], k: int, filters: Filters) -> tuple[list[IntArray], Found]:
        found = decode_lists(
            self.engine, self.trie, prompts, k, length=self.prompter.template.list_length, context=self.context,
            filters=filters, scoring=self.scoring, budget=self.budget, shared=len(self.prompter.head),
        )  # fmt: skip
        return prompts, found


@dataclass(kw_only=True)
class LLMSeqPromptRank(LLMSeqPromptGenList):
    """Puts another recommender's candidates in order: the list is a permutation of those its prompt offers.

    These are the first `list_length` that the session may be given, fewer where they do not fit half of the context;
    with a smaller k, the best k of them.
    """

    candidates: Candidates
    name: str = "LLMSeqPromptRank"

    def _decode(self, sessions: Sessions, k: int, filters: Filters) -> tuple[list[IntArray], Found]:
        listed = candidates_of(sessions, self.candidates)
        keep = Eligible(self.trie, len(sessions), filters).items(listed.rows, listed.tokens)
        listed = TokenLists.by_row(listed.rows[keep], listed.tokens[keep], len(sessions))
        offered = in_catalog_order(self.prompter.shortened(listed, self.context))
        shown = fitting(self.prompter, sessions, self.context, offered)
        prompts = [self.prompter.prompt(items, those) for items, those in zip(shown, offered, strict=True)]
        return self._written(prompts, k, Filters(allow=offered))


@dataclass(kw_only=True)
class LLMSeqPromptClassify(LLMSeqPrompt):
    """Recommends items of the clusters that the model finds most probable for the next item.

    An item's score is log p(its cluster | session), from a certified search over the clusters' names, plus log p(item |
    cluster), its share of the cluster's occurrences in train, each counted once more. A list is made of the CHOSEN best
    clusters, k if that is more; it is certified where no item of another cluster could stand in it.

    popularity: (items,) occurrences in train.
    """

    clusters: Clusters
    popularity: LongArray
    name: str = "LLMSeqPromptClassify"

    def __post_init__(self) -> None:
        counts = self.popularity + 1.0
        self.log_share: FloatArray = np.log(counts / np.bincount(self.clusters.of, counts)[self.clusters.of])

    def _decode(self, sessions: Sessions, k: int, filters: Filters) -> tuple[list[IntArray], Found]:
        n, of = len(sessions), self.clusters.of
        able = _able(filters, n, len(of))
        alive = np.zeros((n, len(self.clusters)), np.bool_)
        for row in range(n):
            alive[row, of[able[row]]] = True
        prompts = [self.prompter.prompt(items) for items in self.prompter.fitting(sessions, self.context)]
        allow = TokenLists(np.nonzero(alive)[1].astype(np.int32), offsets_of(alive.sum(axis=1)))
        found = search(
            self.engine, self.trie, prompts, max(CHOSEN, k), scoring=self.scoring, filters=Filters(allow=allow),
            budget=self.budget, shared=len(self.prompter.head),
        )  # fmt: skip
        lengths = np.diff(found.offsets)
        chosen = np.full(alive.shape, -np.inf)  # log p of each cluster
        chosen[np.repeat(np.arange(n), lengths), found.items] = found.scores
        scores = np.where(able, chosen[:, of] + self.log_share, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, axis=1)
        filled = best > -np.inf
        offsets = offsets_of(filled.sum(axis=1))
        # What stands in a cluster that was not chosen is worth at most the cluster's own probability.
        last, ends = np.full(n, np.inf), found.offsets[1:]
        last[lengths > 0] = found.scores[ends[lengths > 0] - 1]
        unseen = np.where(lengths < allow.lengths, last + np.maximum(found.gap, 0), -np.inf)
        whole = filled.sum(axis=1) == k
        gap = np.where(whole, unseen - np.where(whole, best[:, -1], 0), np.where(unseen > -np.inf, np.inf, -np.inf))
        items = order[filled].astype(np.int32)
        return prompts, Found(offsets, items, best[filled], gap <= 0, gap, found.outside, found.counts)


def _able(filters: Filters, n: int, n_items: int) -> BoolArray:
    """(n, items) what each session may be given."""
    able = np.ones((n, n_items), np.bool_) if filters.stock is None else np.tile(filters.stock, (n, 1))
    if filters.allow is not None:
        admitted = np.zeros((n, n_items), np.bool_)
        admitted[filters.allow.rows, filters.allow.tokens] = True
        able &= admitted if filters.limited is None else admitted | ~filters.limited[:, None]
    if filters.deny is not None:
        able[filters.deny.rows, filters.deny.tokens] = False
    return able


def template_of(config: LLMConfig, base: str) -> tuple[TemplateConfig, dict[str, str]]:
    """The template to use, and the hashes of model (`base`) and adapter; refuses what does not belong together.

    A server is known by what it serves: another address of it makes no other run.
    """
    inputs = {"model": base} | ({"base_url": hash_json(config.served)} if config.base_url else {})
    if config.adapter is None:
        return config.template or TemplateConfig(), inputs
    from seqrec_prompt.engines.models import trained_adapter

    trained, adapter = trained_adapter(config.adapter, config.model, base)
    template = TemplateConfig.model_validate(trained["config"]["template"])
    if config.template is not None and config.template != template:
        raise ConfigError(
            f"{config.adapter} was trained with another template. Leave the template out of this config: the "
            "adapter's own is used."
        )
    return template, inputs | {"adapter": adapter}


def check_variant(config: LLMConfig, template: TemplateConfig, candidates: Path | None = None) -> None:
    """Raise ConfigError where settings do not fit the template's variant."""
    for name, given, needed in (
        ("candidates", candidates, template.name == "Rank"),
        ("embeddings", config.embeddings, template.name == "Classify" and not config.adapter),
    ):
        if needed and given is None:
            raise ConfigError(f"{template.name} needs '{name}': {HOW[name]}.")
        if given is not None and not needed:
            why = ": the adapter brings its clusters" if template.name == "Classify" and config.adapter else ""
            raise ConfigError(f"{template.name} has no use for '{name}'{why}. Leave it out.")
    if config.prior_weight and template.name != "GenItem":
        raise ConfigError(f"'prior_weight' corrects scores of GenItem only. Leave it out with {template.name}.")


def build_recommender(
    config: LLMConfig,
    data: Dataset,
    template: TemplateConfig,
    rules: Rules | None = None,
    candidates: Candidates | None = None,
) -> LLMSeqPrompt:
    """Build the recommender of the template's variant; what it needs is read before the model is.

    Raises ConfigError, ArtifactError or DataError when that is missing or belongs to other data.
    """
    clusters = _clusters(config, data, template) if template.name == "Classify" else None

    engine = _load_engine(config, data.catalog)
    common: dict[str, Any] = {
        "engine": engine,
        "context": min(config.context, engine.context),
        "rules": rules or Rules(),
    }
    common |= {"scoring": config.scoring, "batch_size": config.batch_size, "budget": config.budget}
    if clusters is not None:
        prompter = compile_template(template, data.catalog, engine.tokenizer, clusters.names(data.catalog))
        common |= {"prompter": prompter, "trie": compile_trie(prompter.answers)}
        return LLMSeqPromptClassify(clusters=clusters, popularity=data.popularity, **common)
    # Items that share a title are told apart by how often they occur in train.
    compiled = compile_catalog(
        template, data.catalog, engine.tokenizer, data.popularity, data.companions(template.companions)
    )
    common |= {"prompter": compiled.prompter, "trie": compiled.trie}
    if candidates is not None:
        return LLMSeqPromptRank(candidates=candidates, **common)
    if template.name == "GenList":
        return LLMSeqPromptGenList(**common)
    bonus = None
    if config.prior_weight:
        bonus = -config.prior_weight * log_prior(engine, compiled.prompter, compiled.trie, config.scoring)
    return LLMSeqPrompt(bonus=bonus, **common)


def _load_engine(config: LLMConfig, catalog: Catalog) -> HuggingFaceEngine | VLLMEngine | ServedEngine:
    if config.engine == "vllm":
        from seqrec_prompt.engines.vllm import VLLMEngine

        return VLLMEngine.load(config.model, config.adapter, config.dtype, config.revision, context=config.context)
    if config.engine == "openai":
        from seqrec_prompt.engines.pricing import ServiceConfig
        from seqrec_prompt.engines.served import ServedEngine

        sample = "\n".join(["Title:", *catalog.texts()[:SHOWN]])[:MOST_SHOWN]
        at = ServiceConfig.model_validate({name: getattr(config, name) for name in ServiceConfig.model_fields})
        return ServedEngine.connect(at, config.model, sample, config.served, config.revision)
    from seqrec_prompt.engines.huggingface import HuggingFaceEngine

    return HuggingFaceEngine.load(config.model, config.adapter, config.dtype, config.revision)


def _clusters(config: LLMConfig, data: Dataset, template: TemplateConfig) -> Clusters:
    """Those that the adapter was taught, else those of the embeddings."""
    found = load_clusters(template, config.embeddings, data)
    if found is None and config.adapter is not None:
        if read_manifest(config.adapter, "finetune")["inputs"].get("catalog") != data.catalog.hash:
            raise ConfigError(f"{config.adapter} knows the clusters of another catalog. Give --data it was trained on.")
        found = Clusters.load(config.adapter / CLUSTERS)
    if found is None:
        raise ConfigError(f"Classify needs 'embeddings': {HOW['embeddings']}.")
    return found
