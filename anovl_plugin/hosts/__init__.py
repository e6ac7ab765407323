"""Non-public names of the libraries the package builds on, one file per library."""
