"""Turns titles into parts of addresses."""

import re
import unicodedata


def slugify(title, limit=60):
    """Lower-case letters and digits, joined by single hyphens.

    Accents are dropped; what is longer than the limit is cut between words.
    """
    plain = unicodedata.normalize("NFKD", title)
    words = re.findall(r"[a-z0-9]+", plain.lower())
    slug = "-".join(words)
    return slug[:limit]
