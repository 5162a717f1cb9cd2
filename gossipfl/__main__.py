"""`python -m gossipfl` is the command `gossipfl`."""

from gossipfl.cli import main

if __name__ == "__main__":
    main()
