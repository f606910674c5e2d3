"""Where data comes in: files → Catalog and Sessions → split → a prepared directory."""

from pathlib import Path

SAMPLE = Path(__file__).parent / "sample"
"""Folder of the bundled sample: interactions.csv.gz, items.csv.gz, and where they come from."""
