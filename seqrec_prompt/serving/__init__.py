"""Recommenders that answer while they run: over HTTP, and on a page to try them."""
