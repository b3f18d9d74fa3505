"""The configuration: composed by Hydra, checked against a schema, overridden on the command line."""
