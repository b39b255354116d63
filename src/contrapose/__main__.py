"""`python -m contrapose` is the command line."""

from contrapose.cli import main

main()
