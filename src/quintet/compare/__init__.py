"""The main job: cells, executor, verdicts, advice, claims. Also the verb `quintet.compare`."""

from quintet._verbs import make_verb

make_verb(__name__)
