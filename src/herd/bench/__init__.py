"""How fast a model runs here, beside what the machine can do and beside other engines that are installed.

shapes    a release's shape with random weights, as a file             limits    what the machine can do at most
engines   herd and its peers, each behind one protocol                 bounds    what a task must take at least
workers   each engine in a process of its own                          report    figures as JSON, a table and a roofline
"""
