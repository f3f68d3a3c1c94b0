"""P ranks agree on the majority of their signs.

`exchange` holds the algorithms and the one-shot `vote`; `carriers`, `tensors` and `threads` what moves their words.
`hook` is the vote in a training step, made of `signing`, `momentum`, `schedule` and `plans`, one for each `bucket`;
`ledger` tells what happened in it. `adversary` is what traitors send, and `truth` the plain vote that results are
checked against.
"""
