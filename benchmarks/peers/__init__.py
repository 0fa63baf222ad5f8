"""Other serving systems, served the same model and asked the same questions in the same minute.

Law: each peer lives in an environment of its own, made from the package index and never from our lock file; it is
asked in the form that costs it least; its answers are checked; and it is started, paused and ended by its own process
group, on loopback only. What cannot run here is listed as not run, with the reason, never left out.
"""
