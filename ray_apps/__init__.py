"""Everything that runs on the cluster: train, serve, and the command line that joins them to `data_prep`."""
