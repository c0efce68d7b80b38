"""Floor 7: all stages of a recipe, one after the other, and the page that shows what each was good for."""
