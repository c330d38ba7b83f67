"""`python -m yue_cli` is `yue`."""

from yue_cli.main import main

main()
