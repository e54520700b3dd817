"""`python -m quintet` is `quintet`: the form that torchrun starts."""

from quintet.cli.main import run

if __name__ == "__main__":
    run()
