"""Fine-tuning: one step in pure torch, and its thin adapter to Ray Train."""
