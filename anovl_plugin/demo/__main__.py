"""Write the demo images into a folder, in the layout of MVTec AD: ``python -m anovl_plugin.demo photos``."""

import argparse
from pathlib import Path

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, check_root, make_category


def main() -> None:
    """Read the command line and write the images."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="folder in which to create one for each surface")
    parser.add_argument(
        "--category", choices=PHOTOGRAPHS, nargs="+", default=list(PHOTOGRAPHS), help="surfaces to write; default: all"
    )
    args = parser.parse_args()
    try:
        check_root(args.folder)
    except ValueError as error:
        parser.error(str(error))
    for category in args.category:
        if (args.folder / category).exists():
            parser.error(f"{args.folder / category} already exists; use another folder")
        make_category(args.folder, category)


if __name__ == "__main__":
    main()
