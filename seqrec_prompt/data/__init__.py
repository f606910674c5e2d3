"""Where data comes in: files → Catalog and Sessions → split → a prepared directory."""
