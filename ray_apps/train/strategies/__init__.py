"""How a model is spread over processes, behind one Protocol."""
