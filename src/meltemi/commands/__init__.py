"""The command line: one module per family of verbs, loaded only when used."""
