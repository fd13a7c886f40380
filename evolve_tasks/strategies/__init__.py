"""The four ways to drive an expansion. Each carries out what the core decides, in its own way."""
