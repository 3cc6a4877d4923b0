"""The stub provider and its kin, for the demo, the docs and the tests."""
