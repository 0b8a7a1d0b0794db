"""A plan as text and as JSON."""

from typing import Any

from soho_fast.plan.cards import GIB
from soho_fast.plan.estimate import Plan, most_bounding
from soho_fast.plan.fake import PARTS
from soho_fast.plan.roofline import BOUNDS


def as_text(plan: Plan) -> str:
    """Tables for a terminal."""
    card, sizes, gigabytes = plan.card, plan.parameters, plan.total_memory / GIB
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    hours = "unknown: give --samples, the samples of an epoch" if plan.hours is None else f"{plan.hours:,.1f}"
    lines = [
        f"recipe {plan.recipe} on {plan.gpus} x {card.name}, {plan.precision}, ZeRO {plan.zero_stage}: "
        f"{sizes.trained / 1e6:.1f} M parameters are trained ({sizes.backbone / 1e6:.1f} M of the CNN)",
        f"a step: {plan.gradient_accumulation_steps} micro-batches of {plan.micro_batch} samples on each GPU"
        + (f", {plan.steps_per_epoch:,} steps an epoch" if plan.steps_per_epoch else ""),
        f"memory of a GPU: {gigabytes:.1f} of {card.memory / GIB:.0f} GiB, {verdict}; hours in all: {hours}, "
        f"bound by {most_bounding(plan.phases)}",
    ]
    if plan.changes:
        lines += ["", "changes" if plan.fits else "changes that make it fit", *(f"  {line}" for line in plan.changes)]
    for table in (_operations, _memory, _traffic, _bounds, _time):
        lines += ["", *table(plan)]
    lines += ["", "assumed"]
    width = max(map(len, plan.assumed))
    lines += [f"  {name:<{width}}  {value} ({source})" for name, (value, source) in plan.assumed.items()]
    return "\n".join(lines)


def _operations(plan: Plan) -> list[str]:
    """By part, of a sample."""
    cost = plan.phases[-1].cost
    rows = [
        [part, *(f"{each[part] / plan.micro_batch / 1e9:,.2f}" for each in (cost.forward, cost.backward))]
        for part in PARTS
        if cost.forward[part] or cost.backward[part]
    ]
    sums = [sum(each.values()) / plan.micro_batch / 1e9 for each in (cost.forward, cost.backward)]
    rows.append(["in all", *(f"{value:,.2f}" for value in sums)])
    return _table([f"GFLOP of a sample, a multiply-add is two ({plan.phases[-1].name})", "forward", "backward"], rows)


def _memory(plan: Plan) -> list[str]:
    columns = list(plan.memory)
    names = list(plan.memory[columns[0]])
    heads = [f"ZeRO {stage}{', checkpointing' if again else ''}" for stage, again in columns]
    rows = [[name, *(f"{plan.memory[column][name] / GIB:.2f}" for column in columns)] for name in names]
    return _table(["GiB of a GPU", *heads], rows)


def _traffic(plan: Plan) -> list[str]:
    rows = [[name, f"{value / 1e6:,.2f}"] for name, value in plan.collectives.items()]
    title = f"MB of a GPU in collectives, a step ({plan.phases[-1].name})"
    return _table([title, ""], rows or [["one GPU sends nothing", ""]])


def _bounds(plan: Plan) -> list[str]:
    phase = plan.phases[-1]
    parts = [*phase.seconds.items(), ("in all", phase.by_bound)]
    rows = [[name, *(f"{seconds[bound]:,.3f}" for bound in BOUNDS)] for name, seconds in parts if sum(seconds.values())]
    return _table([f"seconds of a step, by what bounds them ({phase.name})", *BOUNDS], rows)


def _time(plan: Plan) -> list[str]:
    rows = [
        [
            phase.name,
            f"{phase.epochs:g}",
            f"{phase.step_seconds:,.2f}",
            "?" if phase.hours is None else f"{phase.hours:,.1f}",
            phase.bound,
            f"{phase.mfu:.0%}",
            f"{phase.readers['images_a_second']:,.0f}",
            f"{phase.readers['read_mb_a_second']:,.0f}",
            f"{phase.readers['to_device_mb_a_second_a_gpu']:,.0f}",
            f"{phase.readers['workers_a_gpu']:,.0f}",
        ]
        for phase in plan.phases
    ]
    heads = ["phase", "epochs", "s a step", "hours", "bound by", "MFU"]
    heads += ["images/s", "MB/s read", "MB/s to a GPU", "workers a GPU"]
    return _table(heads, rows)


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[number]) for row in [heads, *rows]) for number in range(len(heads))]

    def line(cells: list[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]).rstrip()

    return [line(heads), *(f"{line(row)}" for row in rows)]


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures: bytes, seconds, operations of a micro-batch."""
    card, sizes = plan.card, plan.parameters
    return {
        **vars(plan),
        "card": vars(card),
        "parameters": {"backbone": sizes.backbone, "rest": sizes.rest, "frozen": sizes.frozen},
        "phases": [
            {name: value for name, value in vars(phase).items() if name != "cost"}
            | {"forward": phase.cost.forward, "backward": phase.cost.backward, "bound_by": phase.bound}
            for phase in plan.phases
        ],
        "hours": plan.hours,
        "memory": [
            {"zero_stage": stage, "activation_checkpointing": again, "bytes": found}
            for (stage, again), found in plan.memory.items()
        ],
        "fits": plan.fits,
        "assumed": {name: {"value": value, "source": source} for name, (value, source) in plan.assumed.items()},
    }
