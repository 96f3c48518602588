"""The command line: words to recipes, results to the terminal. Nothing heavy is imported before a command runs."""
