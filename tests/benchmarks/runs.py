"""Running parts one after the other, so that one that fails costs no other its results."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from time import monotonic

from tests.benchmarks.table import Failure, Row

Part = Callable[[], Iterator[Row]]


def run_parts(parts: Mapping[str, Part], keep: Callable[[list[Row]], None]) -> list[Row]:
    """Run parts, print each row as it comes, and return all rows.

    Args:
        parts: functions that yield rows, by name.
        keep: what to do with all rows so far, after each of them.
    """
    rows: list[Row] = []
    start = monotonic()

    def add(row: Row) -> None:
        rows.append(row)
        print(f"[{(monotonic() - start) / 60:5.1f} min]  {'   '.join(filter(None, row.cells))}", flush=True)  # noqa: T201
        keep(rows)

    for name, part in parts.items():
        print(f"[{(monotonic() - start) / 60:5.1f} min]  {name} …", flush=True)  # noqa: T201
        try:
            for row in part():
                add(row)
        except Exception as error:  # noqa: BLE001 - the others are to be measured whatever went wrong
            traceback.print_exc()
            add(Failure(name, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))
    return rows
