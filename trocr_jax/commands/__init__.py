"""The command line's further commands, one a module: its arguments and what it runs."""
