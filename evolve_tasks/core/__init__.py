"""The pure core: events in, actions out. No clock, no threads, no Prefect, no Dask."""
