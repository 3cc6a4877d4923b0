"""Benchmarks, metrics, baselines, calibration and reports."""
