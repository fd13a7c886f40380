"""What runs on the Dask workers."""
