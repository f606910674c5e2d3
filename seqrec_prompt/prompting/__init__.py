"""Where a session becomes a prompt and an item a completion."""
