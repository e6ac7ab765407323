"""Non-public names of the hosts, one file per host, so that changes in new versions show only here."""
