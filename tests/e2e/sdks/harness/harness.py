"""Runs the cases of one SDK, in that SDK's own environment; the tests beside it start it and read what it prints.

On standard input comes one JSON object: ``client`` (``base_url``, ``api_key``, ``headers``), ``answers`` (whether to
run the cases marked with :func:`answer`), and ``attempts`` (calls that are to fail, each with a client of its own).
On standard output goes one JSON line a case: what it returned, or what it raised.
"""

import json
import sys

ANSWERS = {}


def answer(case):
    """Mark a function ``case(client_settings)`` whose answer must be the same with and without Flowstack between."""
    ANSWERS[case.__name__] = case
    return case


def run(attempt):
    """Do what standard input asks for.

    :param attempt: ``attempt(job, pieces)`` makes the client that a job describes and calls it once; a streaming job
        appends each piece to ``pieces`` as it comes, so that a report says how much came before the failure.
    """
    job = json.load(sys.stdin)
    if job.get("answers"):
        for name, case in ANSWERS.items():
            report(name, case, job["client"])
    for one in job.get("attempts", []):
        pieces = []
        report(one["name"], attempt, one, pieces, pieces=pieces)


def report(name, case, *arguments, pieces=None):
    line = {"case": name}
    try:
        line["value"] = case(*arguments)
    except Exception as error:
        line["raised"] = describe(error)
    if pieces is not None:
        line["pieces"] = len(pieces)
    print(json.dumps(line), flush=True)


def describe(error):
    """What a program that catches the exception can see of it."""
    headers = getattr(error, "headers", None) or getattr(getattr(error, "response", None), "headers", None) or {}
    body = getattr(error, "body", None) or parsed(getattr(error, "http_body", None))
    fault = body.get("error", body) if isinstance(body, dict) else {}
    status = getattr(error, "status_code", None) or getattr(error, "http_status", None)
    status = status or getattr(getattr(error, "response", None), "status_code", None)
    # A WebSocket's are of another kind, which cannot be had as a dictionary where a field is repeated.
    pairs = headers.raw_items() if hasattr(headers, "raw_items") else headers.items()
    return {
        "types": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "status": status,
        "code": fault.get("code"),
        "type": fault.get("type"),
        "headers": {name.lower(): value for name, value in pairs},
    }


def parsed(text):
    """The JSON of an error's body as 0.28 keeps it, or None."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None
