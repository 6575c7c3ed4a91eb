"""The command line's commands, one or two a module: its arguments and what it runs."""
