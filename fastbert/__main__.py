"""``python -m fastbert`` runs the command line."""

from fastbert.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
