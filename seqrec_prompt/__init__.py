"""seqrec_prompt."""
