"""A row a decision: written off the hot path, counted, given feedback."""
