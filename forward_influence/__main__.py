"""`python -m forward_influence`: the command line, for where scripts are not on the path."""

from forward_influence.cli.app import main

main()
