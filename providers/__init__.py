"""The only place that knows LiteLLM: calls, errors, prices, token counts, redaction."""
