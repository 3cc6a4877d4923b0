"""Is the traffic still what the router was calibrated on? Tests that may be looked at at any time.

`sequential` has the tests, `baseline` what they compare with, `drift` the report over recorded
decisions, `arms` the comparison of an experiment's arms, `simulate` measures how often all of it is
wrong. Nothing here knows the server: it hands in rows.
"""
