"""Is the traffic still what the router was calibrated on? Tests that may be looked at at any time."""
