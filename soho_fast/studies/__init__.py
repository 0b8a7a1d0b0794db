"""The paper's claims as commands: a matrix of runs, made, measured and compared; see docs/studies.md.

study.py (what a study is) -> matrix.py (its runs) -> running.py (who makes them, one.py: one of them) -> results.py
(their rows) -> comparing.py (what the rows allow to say) -> report.py (as tables, a figure and a page).
"""
