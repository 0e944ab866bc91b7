"""The engine that needs nothing but torch and transformers."""
