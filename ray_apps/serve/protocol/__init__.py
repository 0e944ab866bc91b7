"""The wire: requests, responses and errors of the OpenAI API."""
