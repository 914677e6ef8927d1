"""The techniques, one file a kind: decorated functions and classes that a config names (see registry.py)."""
