"""Bookinfo: a bookshop of four small services, the first thing that a newcomer sees work in a mesh."""
