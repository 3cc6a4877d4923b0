"""`thriftroute report`: the audit as one HTML page."""
