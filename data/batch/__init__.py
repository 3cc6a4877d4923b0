"""Logs of any length: embedded and scored in chunks, resumable, in bounded memory, on many cores.

One function does a chunk (`worker.score_chunk`); a loop, a pool of processes or Ray Data calls it.
"""
