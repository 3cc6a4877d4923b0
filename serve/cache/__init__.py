"""Answers and small facts that are kept for a while: in memory, on disk, in Redis."""
