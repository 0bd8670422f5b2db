"""The gateway's own request log as a workload, so that an operator can replay yesterday.

A line is written when its request ends: it arrived `e2e_s` before `time`. The log holds no prompts; where a line
has `prefix`, chained hashes of the prompt's leading blocks of `prefix_tokens` tokens each, prompts keep their
common prefixes, otherwise each is like no other. Lines of other events are passed over; so are requests that ended
without the worker's count of tokens (rejected, refused, failed, given up), which are counted in a warning.
"""

from pathlib import Path
from typing import Any

from router.lab.workloads import trace_fields
from router.lab.workloads.request_table import RequestTable
from router.lab.workloads.trace_lines import BrokenLine, numbered_lines

BLOCK_TOKENS = 16
NO_CLIENT = "anonymous"


def read(path: Path, block_tokens: int | None, warnings: list[str]) -> RequestTable:
    """Every finished request of the log; in the order of the lines, which is not that of arrival."""
    table = RequestTable(_block_tokens(path) or block_tokens or BLOCK_TOKENS)
    left_out = 0
    for number, line in numbered_lines(path):
        try:
            record = trace_fields.json_object(line)
            if record.get("event") != "request":
                continue
            if "input_tokens" in record and "output_tokens" in record:
                _add(table, record)
            else:
                left_out += 1
        except ValueError as error:
            raise BrokenLine(path, number, str(error)) from None
    if left_out:
        warnings.append(
            f"{path}: {left_out} of {left_out + len(table)} requests ended without a count of their tokens "
            "and are left out"
        )
    return table


def _block_tokens(path: Path) -> int | None:
    """What a unit of the first prefix in the log stands for."""
    for number, line in numbered_lines(path):
        if b'"prefix_tokens"' in line:
            try:
                return trace_fields.tokens(trace_fields.json_object(line), "prefix_tokens", 1)
            except ValueError as error:
                raise BrokenLine(path, number, str(error)) from None
    return None


def _add(table: RequestTable, record: dict[str, Any]) -> None:
    at = trace_fields.moment(record.get("time"), "time") - trace_fields.number(record, "e2e_s")
    length = trace_fields.tokens(record, "input_tokens", 1)
    output = trace_fields.tokens(record, "output_tokens", 0)
    client = table.client(trace_fields.text(record, "client") or NO_CLIENT)
    units = trace_fields.units(record, "prefix")
    if units and trace_fields.tokens(record, "prefix_tokens", 1) != table.prompts.block_tokens:
        raise ValueError(
            f"prefix_tokens is {record['prefix_tokens']}, but {table.prompts.block_tokens} in the lines before"
        )
    try:
        prompt = table.prompts.name(units, length)
    except (TypeError, OverflowError):
        raise ValueError("prefix should be whole numbers from 0 to 2**64 - 1") from None
    table.add(at, client, prompt, output)
