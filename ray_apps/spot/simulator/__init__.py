"""The policy on recorded availability and prices."""
