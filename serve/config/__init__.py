"""The settings of thriftroute.yaml: read, checked, explained."""
