"""The cheapest machines, and what is done when they are taken away."""
