"""What a policy would have cost on recorded sessions of agents."""
