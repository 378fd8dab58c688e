"""The table of contests: ours, each peer, how much longer it took, memory, and the hash that all answers share.

    contest                          contender         ns each   each/s  ratio   memory   CPU s  answer and notes
    job in memory, 10,000,000 rows   engine               71.4   14.0 M   1.0x   1.2 GB     1.3  hash 5f0c2a1b
                                     polars              340.1    2.9 M   4.8x   2.9 GB     6.1
                                     duckdb             absent

Laws
    - What was not measured is a dash, who was not there is ``absent``; nothing is zero that is not zero.
    - Pure functions of the standings.
"""

from collections.abc import Sequence

from engine.cli.bench.standing import Contender, Standing

__all__ = ["format_each_per_s", "table_lines"]

ABSENT = ("absent", "", "", "", "")
THREADS_SHOWN = 4
THREAD_MIN_S = 0.01


def table_lines(standings: Sequence[Standing]) -> list[str]:
    """Lines of text, without trailing blanks; none where there are no standings."""
    if not standings:
        return []
    headings = [standing.heading for standing in standings]
    title_width = max(len("contest"), *map(len, headings))
    names = [name for standing in standings for name in _names(standing)]
    name_width = max(len("contender"), *map(len, names))
    head = _line("contest", title_width, "contender", name_width, "ns each", "each/s", "ratio", "memory", "CPU s")
    lines = [f"{head}  answer and notes"]
    for standing in standings:
        for index, contender in enumerate(standing.contenders):
            title = standing.heading if index == 0 else ""
            line = _line(title, title_width, contender.name, name_width, *_figures(standing, contender))
            remarks = [f"hash {standing.answer_hash}"] if index == 0 else []
            lines.append(f"{line}  {', '.join(remarks + _remarks(contender))}".rstrip())
        lines += [_line("", title_width, name, name_width, *ABSENT).rstrip() for name in standing.absent]
    return lines


def format_each_per_s(items: int, seconds: float) -> str:
    """How many items a second, in millions, or in thousands where there are few."""
    per_s = items / seconds
    if per_s >= 1e9:
        return f"{per_s / 1e9:.1f} G"
    return f"{per_s / 1e6:.2f} M" if per_s >= 1e5 else f"{per_s / 1e3:.2f} k"


def _names(standing: Standing) -> list[str]:
    return [contender.name for contender in standing.contenders] + list(standing.absent)


def _figures(standing: Standing, contender: Contender) -> tuple[str, str, str, str, str]:
    return (
        f"{standing.nanoseconds_each(contender):,.2f}",
        format_each_per_s(standing.items, contender.seconds),
        f"{standing.ratio(contender):.2f}x",
        "-" if contender.memory_bytes is None else f"{contender.memory_bytes / 1e6:,.0f} MB",
        "-" if contender.cpu_s is None else f"{contender.cpu_s:.2f}",
    )


def _remarks(contender: Contender) -> list[str]:
    """The note, and for ours how the work lay on the threads: one that is busy alone is where to look."""
    busy = [cpu_s for cpu_s in contender.thread_cpu_s if cpu_s > THREAD_MIN_S][:THREADS_SHOWN]
    threads = [f"threads {' + '.join(f'{cpu_s:.2f}' for cpu_s in busy)} s"] if contender.is_ours and busy else []
    return ([contender.note] if contender.note else []) + threads


def _line(
    title: str, title_width: int, name: str, name_width: int, each: str, per_s: str, ratio: str, memory: str, cpu: str
) -> str:
    return f"{title:<{title_width}}  {name:<{name_width}} {each:>11} {per_s:>9} {ratio:>7} {memory:>9} {cpu:>7}"
