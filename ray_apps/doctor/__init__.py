"""`vicuna doctor`: what a machine or a cluster can do, measured before money is spent on it."""
