"""The decision pipeline: small pure steps from a request to a plan of models to call."""
