"""Everything that answers a session with a ranked list of catalog items."""
