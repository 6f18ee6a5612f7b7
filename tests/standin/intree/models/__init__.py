"""Hand-written models that use the API as the built-in ones do."""
