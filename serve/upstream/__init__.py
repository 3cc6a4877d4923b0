"""Calls to models through LiteLLM: retries, cooldowns, fallbacks, cascades, streams."""
