"""Write the demo images into a folder, in the layout of MVTec AD: ``python -m anovl_plugin.demo photos``."""

import argparse
from pathlib import Path

from anovl_plugin.demo.datamodule import PHOTOGRAPHS, make_category


def main() -> None:
    """Write the images of the surfaces asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="folder to put a folder for each surface in")
    parser.add_argument("--category", choices=PHOTOGRAPHS, nargs="+", default=list(PHOTOGRAPHS), help="which surfaces")
    args = parser.parse_args()
    for category in args.category:
        if (args.folder / category).exists():
            parser.error(f"{args.folder / category} exists already; name another folder")
        make_category(args.folder, category)


if __name__ == "__main__":
    main()
