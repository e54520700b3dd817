"""The command line: a thin face over quintet.api. Heavy imports happen inside commands, so that help is quick.

Annotations are evaluated here (no `from __future__`), since help texts are local to the application's language.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from quintet._version import __version__
from quintet.core.errors import Interrupted, QuintetError
from quintet.core.messages import LANGUAGES, language, say

LANG_OPTION, BUG_EXIT = "--lang", 1
# a wrong option or argument: click's ClickException, which typer carries under a name of its own from 0.29
WRONG_CALL: Any = typer.BadParameter.__mro__[2]


def run(argv: list[str] | None = None) -> None:
    """Entry point: no traceback for a user's error, one report line for a bug; sets the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    lang = _take_language(argv)
    os.environ["QUINTET_LANG"] = lang
    sys.exit(_guarded(lambda: build(lang)(args=argv, prog_name="quintet", standalone_mode=False), lang))


def _guarded(call: Callable[[], Any], lang: str) -> int:
    try:
        return int(call() or 0)
    except QuintetError as error:
        if not (isinstance(error, Interrupted) and os.environ.get("RANK", "0") != "0"):  # all say the same then
            print(error.text(lang), file=sys.stderr)
        return error.exit_code
    except typer.Exit as error:
        return error.exit_code
    except WRONG_CALL as error:
        error.show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print(say("cli.stopped", lang), file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing more to say
        return 0
    except Exception as error:
        if os.environ.get("QUINTET_DEBUG"):
            raise
        where = _place(error)
        print(
            say("cli.bug", lang, kind=type(error).__name__, why=error, where=where, version=__version__),
            file=sys.stderr,
        )
        return BUG_EXIT


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _take_language(argv: list[str]) -> str:
    """Take --lang out of the arguments: help texts are looked up when the command is built."""
    for i, word in enumerate(argv):
        if word == LANG_OPTION or word.startswith(LANG_OPTION + "="):
            inline = "=" in word
            value = word.partition("=")[2] if inline else (argv[i + 1] if i + 1 < len(argv) else "")
            if value not in LANGUAGES:
                print(say("cli.lang", language(), value=value), file=sys.stderr)
                sys.exit(2)
            del argv[i : i + (1 if inline else 2)]
            return value
    return language()


def build(lang: str) -> typer.Typer:
    """The application with its texts in one language."""

    def text(name: str) -> str:
        return say(f"help.{name}", lang)

    app = typer.Typer(
        help=text("app"),
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    out = typer.Option("--out", "-o", help=text("out"))
    as_json = typer.Option("--json", help=text("json"))
    quiet = typer.Option("--quiet", "-q", help=text("quiet"))
    dry = typer.Option("--dry-run", help=text("dry_run"))
    device = typer.Option("--device", help=text("device"))
    threads = typer.Option("--threads", min=1, help=text("threads"))
    changes = typer.Option("--set", help=text("set"))
    options = typer.Option("--data", metavar="OPTION=VALUE", help=text("data_options"))
    config = typer.Option("--config", metavar="FILE", help=text("config_file"))
    judges = typer.Option("--judge", metavar="NAME=FILE", help=text("judge"))

    @app.callback(invoke_without_command=True)
    def main(
        context: typer.Context, version: Annotated[bool, typer.Option("--version", help=text("version"))] = False
    ) -> None:
        if version:
            print(f"quintet {__version__}")
        elif context.invoked_subcommand is None:
            print(context.get_help())

    # every command takes --lang; it is read before this application is built and shown in the program's help

    @app.command(help=text("demo"))
    def demo(
        out: Annotated[Path, out] = Path("runs/demo"),
        budget: Annotated[str, typer.Option(help=text("budget"))] = "12s",
        seeds: Annotated[int, typer.Option(help=text("seeds"))] = 2,
        device: Annotated[str, device] = "auto",
        threads: Annotated[int | None, threads] = None,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
        dry_run: Annotated[bool, dry] = False,
    ) -> None:
        from quintet.cli import commands

        commands.compare(
            "digits", [], budget, None, seeds, out, device, threads, [], quiet, as_json, dry_run, lang, demo=True
        )

    @app.command(help=text("compare"))
    def compare(
        data: Annotated[str | None, typer.Argument(metavar="DATA", help=text("data"))] = None,
        config: Annotated[Path | None, config] = None,
        budget: Annotated[str | None, typer.Option(help=text("budget"))] = None,
        within: Annotated[str | None, typer.Option(help=text("within"))] = None,
        recipes: Annotated[str, typer.Option(help=text("recipes_option"))] = "",
        seeds: Annotated[int | None, typer.Option(help=text("seeds"))] = None,
        out: Annotated[Path | None, out] = None,
        device: Annotated[str, device] = "auto",
        threads: Annotated[int | None, threads] = None,
        changes: Annotated[list[str] | None, changes] = None,
        options: Annotated[list[str] | None, options] = None,
        sensitivity: Annotated[
            bool | None, typer.Option("--sensitivity/--no-sensitivity", help=text("sensitivity"))
        ] = None,
        judges: Annotated[list[str] | None, judges] = None,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
        dry_run: Annotated[bool, dry] = False,
    ) -> None:
        from quintet.cli import commands

        names = [name.strip() for name in recipes.split(",") if name.strip()]
        commands.compare(
            data, names, budget, within, seeds, out, device, threads, changes or [], quiet, as_json, dry_run, lang,
            options=options, config=config, sensitivity=sensitivity, judges=judges,
        )  # fmt: skip

    @app.command(help=text("train"))
    def train(
        recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=text("recipe"))],
        data: Annotated[str | None, typer.Argument(metavar="DATA", help=text("data"))] = None,
        config: Annotated[Path | None, config] = None,
        budget: Annotated[str | None, typer.Option(help=text("train_budget"))] = None,
        seed: Annotated[int, typer.Option(help=text("seed"))] = 0,
        out: Annotated[Path | None, out] = None,
        resume: Annotated[bool, typer.Option("--resume", help=text("resume"))] = False,
        strict: Annotated[bool, typer.Option("--strict-resume", help=text("strict_resume"))] = False,
        rescan: Annotated[bool, typer.Option("--rescan", help=text("rescan"))] = False,
        device: Annotated[str, device] = "auto",
        threads: Annotated[int | None, threads] = None,
        changes: Annotated[list[str] | None, changes] = None,
        options: Annotated[list[str] | None, options] = None,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
        dry_run: Annotated[bool, dry] = False,
    ) -> None:
        from quintet.cli import commands

        commands.train(
            recipe, data, budget, seed, out, resume, device, threads, changes or [], quiet, as_json, dry_run, lang,
            options=options, config=config, strict=strict, rescan=rescan,
        )  # fmt: skip

    @app.command(help=text("sample"), context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def sample(
        context: typer.Context,
        run: Annotated[str, typer.Argument(metavar="RUN", help=text("run"))],
        n: Annotated[int, typer.Option("-n", "--count", help=text("count"))] = 64,
        label: Annotated[str | None, typer.Option(help=text("label"))] = None,
        seed: Annotated[int, typer.Option(help=text("seed"))] = 0,
        out: Annotated[Path | None, out] = None,
        device: Annotated[str, device] = "auto",
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
        dry_run: Annotated[bool, dry] = False,
    ) -> None:
        from quintet.cli import commands

        commands.sample(run, n, label, seed, out, device, list(context.args), quiet, as_json, dry_run, lang)

    @app.command(help=text("compress"))
    def compress(
        run: Annotated[str, typer.Argument(metavar="RUN", help=text("run"))],
        data: Annotated[str, typer.Argument(metavar="DATA", help=text("data"))],
        out: Annotated[Path, out] = Path("data.qtz"),
        part: Annotated[str, typer.Option(help=text("compress_part"))] = "all",
        count: Annotated[int | None, typer.Option("-n", "--count", min=1, help=text("compress_count"))] = None,
        options: Annotated[list[str] | None, options] = None,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
    ) -> None:
        from quintet.cli import compress as command

        command.compress(run, data, out, part, count, options, quiet, as_json, lang)

    @app.command(help=text("decompress"))
    def decompress(
        file: Annotated[Path, typer.Argument(metavar="FILE", help=text("compressed"))],
        out: Annotated[Path, out] = Path("data.npz"),
        run: Annotated[str | None, typer.Option(metavar="RUN", help=text("decompress_run"))] = None,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
    ) -> None:
        from quintet.cli import compress as command

        command.decompress(file, out, run, quiet, as_json, lang)

    @app.command(help=text("advise"))
    def advise(
        where: Annotated[Path | None, typer.Argument(metavar="[COMPARE]", help=text("compare_folder"))] = None,
        need: Annotated[str, typer.Option(help=text("need"))] = "",
        needs: Annotated[str, typer.Option(help=text("needs"))] = "",
        max_latency: Annotated[str | None, typer.Option(help=text("max_latency"))] = None,
        max_memory: Annotated[str | None, typer.Option(help=text("max_memory"))] = None,
        data_size: Annotated[int | None, typer.Option(help=text("data_size"))] = None,
        as_json: Annotated[bool, as_json] = False,
    ) -> None:
        from quintet.cli import commands

        ranked, able = ([name.strip() for name in names.split(",") if name.strip()] for names in (need, needs))
        commands.advise(where, ranked, able, max_latency, max_memory, data_size, as_json, lang)

    @app.command(help=text("evaluate"))
    def evaluate(
        sources: Annotated[list[str], typer.Argument(metavar="RUN_OR_SAMPLES... DATA", help=text("evaluate_sources"))],
        labels: Annotated[str | None, typer.Option(metavar="FILE|none", help=text("evaluate_labels"))] = None,
        values: Annotated[str, typer.Option(help=text("evaluate_values"))] = "auto",
        resize: Annotated[bool, typer.Option("--resize", help=text("evaluate_resize"))] = False,
        samples: Annotated[int | None, typer.Option("-n", "--count", min=20, help=text("evaluate_count"))] = None,
        judges: Annotated[list[str] | None, judges] = None,
        options: Annotated[list[str] | None, options] = None,
        out: Annotated[Path | None, out] = None,
        device: Annotated[str, device] = "auto",
        threads: Annotated[int | None, threads] = None,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
    ) -> None:
        from quintet.cli import evaluate as command

        command.evaluate(
            sources, labels, values, resize, samples, judges or [], options, out, device, threads, quiet, as_json, lang
        )

    @app.command(help=text("articles"))
    def articles(
        out: Annotated[Path, out] = Path("runs/articles"),
        data: Annotated[str, typer.Option("--data", metavar="DATA,...", help=text("articles_data"))] = "",
        seeds: Annotated[int, typer.Option(min=1, help=text("seeds"))] = 6,
        budget: Annotated[str | None, typer.Option(help=text("articles_budget"))] = None,
        device: Annotated[str, device] = "auto",
        threads: Annotated[int | None, threads] = None,
        markdown: Annotated[bool, typer.Option("--markdown", help=text("articles_markdown"))] = False,
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
        dry_run: Annotated[bool, dry] = False,
    ) -> None:
        from quintet.cli import articles as command

        names = [name.strip() for name in data.split(",") if name.strip()]
        command.articles(out, names, seeds, budget, device, threads, markdown, quiet, as_json, dry_run, lang)

    @app.command(help=text("check"))
    def check(
        data: Annotated[str, typer.Argument(metavar="DATA", help=text("data"))],
        options: Annotated[list[str] | None, options] = None,
        out: Annotated[Path, out] = Path("data_report.json"),
        quiet: Annotated[bool, quiet] = False,
        as_json: Annotated[bool, as_json] = False,
    ) -> None:
        from quintet.cli import commands

        raise typer.Exit(commands.check(data, options, out, quiet, as_json, lang))

    @app.command("config", help=text("config"))
    def config_(
        data: Annotated[str, typer.Argument(metavar="DATA", help=text("data"))],
        recipes: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE]...", help=text("config_recipes"))] = None,
        every: Annotated[bool, typer.Option("--all", help=text("config_all"))] = False,
        budget: Annotated[str, typer.Option(help=text("budget"))] = "60s",
        seeds: Annotated[int | None, typer.Option(help=text("seeds"))] = None,
        options: Annotated[list[str] | None, options] = None,
        out: Annotated[Path | None, out] = None,
    ) -> None:
        from quintet.cli import commands

        commands.config(data, recipes or [], every, budget, seeds, options, out, lang)

    @app.command(help=text("recipes"))
    def recipes(
        data: Annotated[str | None, typer.Argument(metavar="[DATA]", help=text("recipes_data"))] = None,
        as_json: Annotated[bool, as_json] = False,
    ) -> None:
        from quintet.cli import commands

        commands.recipes(data, as_json, lang)

    @app.command(help=text("doctor"))
    def doctor(as_json: Annotated[bool, as_json] = False) -> None:
        from quintet.cli import commands

        raise typer.Exit(commands.doctor(as_json, lang))

    return app


def dump(value: Any) -> None:
    """Machine output: one JSON document on standard output, never translated."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


if __name__ == "__main__":
    run()
