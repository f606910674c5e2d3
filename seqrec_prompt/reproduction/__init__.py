"""A paper's table from raw files, by the other verbs: plans are data, what they make is each verb's own."""
