"""Flows that people run: each is a command line, and a Prefect flow that can be deployed."""
