"""Logs of any length, scored in chunks: resumable, in bounded memory, on threads or on Ray Data."""
