"""What can be promised of a threshold at a stated confidence, and the search for one."""
