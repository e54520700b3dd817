"""Live progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from quintet.compare.forecast import Forecast
from quintet.core.messages import say

PLAIN_EVERY_S = 10.0


class Progress:
    """A listener for `compare` and `train`.

    Args:
        console: where to write; a terminal gets bars.
        forecast: of a comparison, None for a single training.
        lang: of the words.
    """

    def __init__(self, console: Console, forecast: Forecast | None, lang: str) -> None:
        self.console, self.forecast, self.lang = console, forecast, lang
        self.cells = forecast.cells if forecast is not None else 1
        self.done = 0
        self.name = ""
        self._told = 0.0
        self._bars: Bars | None = None
        if console.is_terminal and not console.quiet:
            self._bars = Bars(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True,
            )  # fmt: skip
            self._all = self._bars.add_task(say("cli.cells", lang), total=self.cells, note="", visible=self.cells > 1)
            self._cell = self._bars.add_task("", total=1.0, note="")

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind == "reference":
            self._start(say("cli.judge", self.lang))
        elif kind == "cell":
            self._start(f"{event['recipe']} s{event['seed']}")
        elif kind == "rate":
            self._start(say("cli.rate", self.lang, recipe=event["recipe"], factor=f"{event['factor']:.2g}"))
        elif kind == "step":
            self._step(event)
        elif kind == "phase":
            self._note(say(f"phase.{event['phase']}", self.lang))
        elif kind == "event" and event["what"] not in ("end_fixed",):
            text = say(event["what"], self.lang, **_fields(event)) if "." in event["what"] else ""
            text = text or say("event." + event["what"], self.lang, **_fields(event))
            self.console.print(f"{self.name}: {text}" if self.name else text)
        elif kind == "cell-done":
            self.done += 1
            if not event["ok"]:
                reason = event["reason"][self.lang]
                self.console.print(say("cli.cell_failed", self.lang, name=self.name, why=reason))
            if self._bars is not None:
                self._bars.update(self._all, completed=self.done)
            elif event["ok"]:
                self.console.print(say("cli.cell_done", self.lang, name=self.name, done=self.done, cells=self.cells))

    def _start(self, name: str) -> None:
        self.name = name
        if self._bars is not None:
            self._bars.reset(self._cell, description=name, total=1.0, note="")
        else:
            self.console.print(name)

    def _step(self, event: Mapping[str, Any]) -> None:
        note = say("cli.step", self.lang, step=event["step"], rate=event["step"] / max(event["seconds"], 1e-9))
        if self._bars is not None:
            self._bars.update(self._cell, completed=event["share"], note=note)
            return
        now = time.monotonic()
        if now - self._told > PLAIN_EVERY_S:
            self._told = now
            self.console.print(f"  {event['share']:4.0%}  {note}", highlight=False)

    def _note(self, text: str) -> None:
        if self._bars is not None:
            self._bars.update(self._cell, note=text)


def _fields(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("kind", "what")}
