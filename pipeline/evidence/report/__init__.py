"""A report as something to look at: a page, a table on the terminal, and XML for CI systems."""
