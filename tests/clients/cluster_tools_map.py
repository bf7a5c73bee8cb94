"""cluster-tools: a function is mapped by an array; prints what came of it as JSON."""

from __future__ import annotations

import json

import cluster_tools


def square(number: int) -> int:
    return number * number


def main() -> None:
    with cluster_tools.get_executor("pbs", job_resources={"mem": "200MB"}) as executor:
        print(json.dumps([future.result() for future in executor.map_to_futures(square, [2, 3, 4])]))


if __name__ == "__main__":
    main()
