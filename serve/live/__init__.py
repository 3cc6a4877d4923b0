"""What watches live traffic: drift, experiments, shadow mode."""
