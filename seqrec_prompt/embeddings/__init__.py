"""Items become vectors: the table, how it is filled, how it is reduced."""
