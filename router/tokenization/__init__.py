"""Tokens mode: a prompt as the token ids that a worker will compute, so that routing knows exactly what it knows.

    ask ──► prompts: what is to be tokenized ──► local: template, pieces, encoder ──► ids ──► the request's key
                                        └──────► remote: the worker's own /tokenize ──┘

`choice` decides per model which of the two it is, or neither; `desk` is what a request meets: it waits there for a
bounded time, and whatever cannot be tokenized exactly goes on as text, counted by reason.
"""
