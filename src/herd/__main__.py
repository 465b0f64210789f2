"""`python -m herd` is the command `herd`."""

from herd.cli.main import main

main(prog_name="herd")
