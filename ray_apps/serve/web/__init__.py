"""The chat page: what a person sees at `/`. Built on gradio, which stays in `page`."""
