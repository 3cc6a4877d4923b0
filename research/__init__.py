"""The protocols of `evaluate --protocol`: a situation of a user, drawn many times and measured."""
