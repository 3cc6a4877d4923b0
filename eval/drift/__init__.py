"""Is the traffic still what the router was calibrated on? Tests to be looked at at any time."""
