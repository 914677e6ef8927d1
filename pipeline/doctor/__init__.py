"""The data doctor behind ``stage=check``: one pass over all images, then questions to what it kept of each.

survey reads; duplicates, drift, leaks, balance, orientation and pictures ask; page shows. Nothing here decides for the
user: every finding ends in a command or a key.
"""
