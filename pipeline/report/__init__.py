"""report.html: all that is known of a competition's runs, as one file that needs nothing from outside.

``facts.py`` reads it, ``sections.py`` lists the sections in their order (a function each; a new one is added there),
``page.py`` and ``charts.py`` write HTML and SVG, and escape what comes from data.
"""
