"""`python -m bigain`: the command, where its script is not on the path."""

from bigain.cli.main import main

if __name__ == "__main__":
    main()
