"""The runtime: text to score to decision to answer. Never imports torch."""
