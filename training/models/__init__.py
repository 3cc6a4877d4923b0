"""What is fitted: the head of mf, in closed form; bert, and the loop that trains it."""
