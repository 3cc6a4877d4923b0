"""Logs of one's own: imported, described, labelled. What comes out trains and audits a router."""
