"""The commands of the command line: one file each, with its options, the call, what it prints."""
