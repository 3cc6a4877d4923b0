"""A row a decision: written off the hot path, counted, given feedback."""

from .record import CacheState, Record, hash_prompt, hash_session
from .writer import Recorder

__all__ = ["CacheState", "Record", "Recorder", "hash_prompt", "hash_session"]
