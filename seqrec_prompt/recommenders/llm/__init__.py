"""What an LLM answers to a session, and what is made of its answers: local, hosted, grounded, distilled, preferred."""
