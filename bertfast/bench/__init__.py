"""Speed and accuracy of every backend on the user's own rows, in one run and one report."""
