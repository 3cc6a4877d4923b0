"""What calls cost, and budgets that hold under concurrency."""
