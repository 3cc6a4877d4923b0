"""`python -m thriftroute.cli` is the command `thriftroute`."""

from . import main

if __name__ == "__main__":
    main()
