"""schemathesis over an OpenAPI document: its address, the token, and how many requests of each operation."""

import sys

from schemathesis.cli import schemathesis

url, token, count = sys.argv[1:]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
schemathesis(
    ["run", url, "--header", f"Authorization: Bearer {token}", "--max-examples", count, "--seed", "1",
     "--phases", "examples,fuzzing", "--no-color", "--checks", CHECKS]
)  # fmt: skip
