"""The verbs of the `cockpit` command line, and nothing of what they do."""
