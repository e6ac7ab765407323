"""The names of each host that are not public, one file per host."""
