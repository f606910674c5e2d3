"""How good ranked lists are: metrics, one table for several recommenders, examples."""
