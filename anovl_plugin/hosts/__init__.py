"""Non-public names of the hosts, one file per host: a new version of a host can break the package only here."""
