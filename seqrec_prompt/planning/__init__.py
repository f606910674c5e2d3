"""Time, memory and money before they are spent."""
