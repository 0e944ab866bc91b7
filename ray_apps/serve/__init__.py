"""An OpenAI-compatible endpoint on Ray Serve."""
