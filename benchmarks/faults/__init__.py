"""Faults on purpose: real daemons, a link that breaks, and an account of what became of every request.

    load --> Agent (here, or a process of its own) --> LinkEmulator or TUN link --> gateway processes
      '--> account: what the caller saw                                                 '--> ledger: what was executed

Law: who breaks things and who counts are not the same. The account believes only what a caller was given and what an
engine has really run, never the counters of the daemons, save for how often something was sent.
"""
