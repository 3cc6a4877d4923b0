"""thriftroute: a trained router for LLM calls."""
