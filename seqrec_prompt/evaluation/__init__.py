"""How good ranked lists are: metrics, intervals and tests, one table for several recommenders, the report."""
