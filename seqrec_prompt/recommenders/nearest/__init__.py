"""What lies nearest: sessions (neighbours) and item embeddings (LLMSeqSim), as array code."""
