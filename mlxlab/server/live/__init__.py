"""The live view of a server: one view model, shown in notebook, browser and terminal.

:mod:`~mlxlab.server.live.view` turns events into a snapshot and then changes.
``panel.js`` and ``panel.css`` draw them, in a notebook and in a browser.
"""
