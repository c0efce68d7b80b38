"""Floor 7: the whole house in one run, and a page that shows what came of it."""
