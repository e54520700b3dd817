"""Complete runs, one function each. Also the verb `quintet.recipes`."""

from quintet._verbs import make_verb

make_verb(__name__)
