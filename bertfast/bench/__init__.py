"""Speed and accuracy of every backend on the user's own rows, in one run and one report.

As data flow: plan says what is measured, and candidates who takes part. worker talks to the process of child, which
loads ours or a peer. measuring asks them in turn, by scenarios; accuracy and uncertainty judge their answers; run makes
results of all this. figures are computed from results; table and plots show them, in words (report) and as a page
(html). gate judges results by limits, and compare holds two of them against each other.
"""
