"""`python -m autolayer` is the same as `autolayer`."""

from autolayer.cli.main import main

if __name__ == "__main__":
    main()
