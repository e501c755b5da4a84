"""Numbers about models, from what they said. No model is needed."""
