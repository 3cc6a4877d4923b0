"""Preference data in and out: rows, readers, tables, splits and decontamination."""
