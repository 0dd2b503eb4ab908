"""Help for writing recipes: templates, the gallery, what a data file holds, what each key means. No torch."""
