"""The command line."""

import argparse
import sys

from ledger.entries import read_entries
from ledger.report import render, totals


def build_parser():
    parser = argparse.ArgumentParser(prog="ledger", description=__doc__)
    parser.add_argument("statements", nargs="+", help="CSV files")
    parser.add_argument("--category", help="only this category")
    return parser


def main(argv=None):
    options = build_parser().parse_args(argv)
    entries = [entry for path in options.statements for entry in read_entries(path)]
    if options.category:
        entries = [entry for entry in entries if entry.category == options.category]
    sys.stdout.write(render(totals(entries)))
