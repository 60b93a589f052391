"""The pages that somebody sees who unsubscribes: plain HTML without scripts, cookies or anything from elsewhere."""

import html

from engine.ingress.unsubscribe import Answer

STATUS = {
    Answer.ASK: 200,
    Answer.DONE: 200,
    Answer.UNKNOWN: 404,
    Answer.EXPIRED: 410,
    Answer.SLOWER: 429,
    Answer.LATER: 503,
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
_TEXTS = {
    Answer.ASK: ("Unsubscribe", "{address} will get no more mail of this kind."),
    Answer.DONE: (
        "Unsubscribed",
        "{address} gets no more mail of this kind. It may take a moment to reach all servers.",
    ),
    Answer.UNKNOWN: (
        "Not found",
        "This link is not complete, or not one of ours. Try the link in the mail again.",
    ),
    Answer.EXPIRED: ("Too old", "This link is too old. The one in a newer mail works."),
    Answer.SLOWER: ("Too many requests", "Try again in a minute."),
    Answer.LATER: (
        "Not stored",
        "That did not work just now, nothing was changed. Please try again in a minute.",
    ),
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:1.1em/1.5 sans-serif;max-width:32em;margin:4em auto;padding:0 1em;overflow-wrap:anywhere}}
button{{font:inherit;padding:.5em 1.5em}}</style></head>
<body><h1>{title}</h1><p>{text}</p>{form}</body></html>
"""
_FORM = '<form method="post"><button type="submit">Unsubscribe</button></form>'


def page(answer: Answer, address: str) -> str:
    title, text = _TEXTS[answer]
    form = _FORM if answer in (Answer.ASK, Answer.LATER) else ""
    return _PAGE.format(
        title=title, text=text.format(address=f"<bdi>{html.escape(address)}</bdi>"), form=form
    )
