"""The DAGs, and the `saeinterp` command that is their front door."""
