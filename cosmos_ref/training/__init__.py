"""Floor 5: the loss, the data it is taken over, and the loop that lowers it."""
