"""Model directories from other forms of weights."""
