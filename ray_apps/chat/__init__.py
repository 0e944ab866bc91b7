"""A chat in the terminal, with a model directory or any OpenAI-compatible endpoint."""
