"""What is not public in the hosts, one file per host: a change in a new version shows here and nowhere else."""
