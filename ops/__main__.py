"""`python -m ops` is the `ordermesh` command."""

from ops.cli import main

main()
