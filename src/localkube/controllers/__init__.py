"""The controllers of a cluster: pure plans (state -> actions), and the loops that carry them out."""
