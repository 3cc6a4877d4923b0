"""Protocols besides chat completions: their requests and answers as chat completions, and back."""
