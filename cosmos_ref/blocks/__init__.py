"""Floor 2: modules with parameters; each one calls the equations of floor 1."""
