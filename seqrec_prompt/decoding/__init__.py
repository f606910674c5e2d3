"""How a title is decoded: the catalog as a radix trie, and the search over it, which knows no engine."""
