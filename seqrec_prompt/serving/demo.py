"""`demo`: a page on this machine to search titles, build a session and compare what recommenders give for it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from seqrec_prompt.serving.server import address, answer, listen, require
from seqrec_prompt.serving.settings import ServedConfig

PATIENCE = 5  # seconds that a stop waits for lists that are being computed


class DemoConfig(ServedConfig):
    """Settings of `demo`."""

    vectors: Path | None = Field(
        None,
        description="directory made by 'embed': an item's nearest session items are told by these; by default by the "
        "train sessions that hold both",
    )
    host: str = Field("127.0.0.1", description="address to listen on; there is no login, so think before opening it")
    port: int = Field(7860, ge=0, le=65535, description="port to listen on; 0: any that is free")


def demo(config: DemoConfig) -> None:
    """Show the page until interrupted. It asks no other host for anything, and sends nothing anywhere.

    Raises MissingExtraError without the extra, ConfigError when the address cannot be had, and what loading raises.
    """
    require(("gradio",), "demo")
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.embeddings.table import EmbeddingTable
    from seqrec_prompt.serving.ready import load_ready

    data = Dataset.load(config.data)
    vectors = None if config.vectors is None else EmbeddingTable.load(config.vectors, data.catalog).vectors
    with listen(config.host, config.port) as listening:  # before a model is loaded: a taken port is told at once
        ready = load_ready(config, data)

        from seqrec_prompt.serving.page import build_page

        page = build_page(ready, data, vectors)
        print(f"demo of {', '.join(ready)}: {address(listening)}", flush=True)
        answer(page, listening, PATIENCE)
