"""A comparison of methods: its grid of cells, what runs them, and what is made of their results."""
