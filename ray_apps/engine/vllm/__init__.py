"""The engine on vLLM. Nothing here is imported before it is chosen, since vLLM is an extra."""
