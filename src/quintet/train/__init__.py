"""Training: the loop, optimisers, averages, runs. Also the verb `quintet.train`."""

from quintet._verbs import make_verb

make_verb(__name__)
