"""Questions, answers, verdicts and figures: a client of any OpenAI-compatible endpoint."""
