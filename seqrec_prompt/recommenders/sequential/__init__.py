"""Models that read a session item by item: SASRec, BERT4Rec, GRU4Rec, with or without LLM embeddings of the items."""
