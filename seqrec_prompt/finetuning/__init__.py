"""Where the LLM is tuned."""
