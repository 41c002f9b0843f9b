"""Starts, watches and ends the processes of a cluster: P0 (host), P1 (init), P2 and P3."""
