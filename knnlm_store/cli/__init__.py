"""The command line: thin, one file a group of commands. Imports torch only inside commands."""
