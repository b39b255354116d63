"""`contrapose list`: the names of recipes, sets, encoders, losses and the rest."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from contrapose.commands.console import console


def list_() -> None:
    """Show the recipes, named sets, encoders, heads, views, losses and optimisers there are."""
    print_inventory()


def print_inventory() -> None:
    """Print all names that can be used on the command line."""
    from contrapose import augment, encoders, experiments, keys, losses, recipes
    from contrapose.data import COMPOSED, NAMED
    from contrapose.evaluation.corruptions import CORRUPTIONS
    from contrapose.keys.contrast import Grouped, InBatch, Matched, fits
    from contrapose.partials import alike, public_functions
    from contrapose.training import batches, optim

    def section(title: str, rows: dict[str, str], beneath: dict[str, str] | None = None) -> None:
        console.print(Text(title, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=max(23, *(len(name) + 2 for name in rows)), no_wrap=True)
        table.add_column()
        for name, says in rows.items():
            table.add_row(Text(f"  {name}"), Text(says))
            if beneath:
                table.add_row(Text(""), Text(beneath[name], style="dim"))
        console.print(table)

    def first_lines(functions: Sequence[Any]) -> dict[str, str]:
        return {f.__name__: (f.__doc__ or "").strip().partition("\n")[0] for f in functions}

    names = recipes.names()
    section(
        "recipes (--recipe)",
        {name: recipes.summary(name) for name in names},
        {name: recipes.expectation(name) for name in names},
    )
    section("named sets (DATA)", {name: record.about for name, record in NAMED.items()})
    section(
        "composed sets (DATA, written as random-bits(mnist, bits=8))",
        dict(zip(COMPOSED, first_lines(list(COMPOSED.values())).values(), strict=True)),
    )
    section("encoders (--encoder)", first_lines(encoders.BACKBONES))
    section("heads (--set head=...)", first_lines(encoders.HEADS))
    every = public_functions(losses)
    usable = {name: f for name, f in every.items() if fits(f, InBatch)}
    against_keys = {n: f for n, f in every.items() if fits(f, Matched) or fits(f, Grouped)}
    section("losses (--set loss=...)", first_lines(list(usable.values())))
    section("keys from elsewhere (--set keys=...)", first_lines(list(alike(keys.bank).values())))
    section("losses with such keys (--set loss=...)", first_lines(list(against_keys.values())))
    usable |= against_keys
    others = [f for name, f in every.items() if name not in usable]
    section("losses of other inputs (in Python)", first_lines(others))
    section("batches (--set batches=...)", first_lines(list(alike(batches.conditional).values())))
    section("views (--set views=...)", first_lines(list(alike(augment.simclr).values())))
    section("mixing (--set mixing=...)", first_lines(list(alike(augment.mixup).values())))
    section("optimisers (--set optimizer=...)", first_lines(optim.OPTIMISERS))
    section("schedules (--set schedule=...)", first_lines(optim.SCHEDULES))
    corrupting = {
        name: (made.change.__doc__ or "").strip().partition("\n")[0]
        for name, made in CORRUPTIONS.items()
    }
    section("corruptions (contrapose robustness RUN --only ...)", corrupting)
    found = {name: experiments.experiment(name) for name in experiments.names()}
    described = {name: f"{e.title} ({', '.join(e.costs)})" for name, e in found.items()}
    section("experiments (contrapose reproduce)", described)
