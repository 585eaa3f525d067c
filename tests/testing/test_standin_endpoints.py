from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from typing import Any

import pytest

from tests.testing.wire import Answer, Client

CHAT_STREAM = (
    b'data: {"id":"chatcmpl-@","object":"chat.completion.chunk","created":1735689600,"model":"gpt-4o-2024-08-06",'
    b'"service_tier":"default","system_fingerprint":"fp_57a4d1f0e5","choices":[{"index":0,"delta":{"role":"assistant",'
    b'"content":"","refusal":null},"logprobs":null,"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-@","object":"chat.completion.chunk","created":1735689600,"model":"gpt-4o-2024-08-06",'
    b'"service_tier":"default","system_fingerprint":"fp_57a4d1f0e5","choices":[{"index":0,"delta":{"content":"Hi"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-@","object":"chat.completion.chunk","created":1735689600,"model":"gpt-4o-2024-08-06",'
    b'"service_tier":"default","system_fingerprint":"fp_57a4d1f0e5","choices":[{"index":0,"delta":{"content":" there"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-@","object":"chat.completion.chunk","created":1735689600,"model":"gpt-4o-2024-08-06",'
    b'"service_tier":"default","system_fingerprint":"fp_57a4d1f0e5","choices":[{"index":0,"delta":{},"logprobs":null,'
    b'"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def events(answer: Answer) -> list[tuple[str | None, Any]]:
    """The events of a stream; a blank line ends each, and nothing else stands between them."""
    found = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        *name, data = block.split("\n")
        assert data.startswith("data: ")
        value = data.removeprefix("data: ")
        kind = name[0].removeprefix("event: ") if name else None
        found.append((kind, value if value == "[DONE]" else json.loads(value)))
    return found


def form(**parts: tuple[str | None, bytes]) -> tuple[str, bytes]:
    """The Content-Type line and the body of a multipart form; a part is its file name and its content."""
    body = b""
    for name, (filename, data) in parts.items():
        extra = f'; filename="{filename}"\r\nContent-Type: application/octet-stream' if filename else ""
        body += f'--b0und\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data + b"\r\n"
    return "Content-Type: multipart/form-data; boundary=b0und", body + b"--b0und--\r\n"


def test_a_chat_stream_is_framed_byte_for_byte_as_openais(client: Client) -> None:
    answer = client.chat(stream=True, text="Hi there")
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    assert answer.header("transfer-encoding") == "chunked"
    assert re.sub(rb"chatcmpl-[0-9a-f]{29}", b"chatcmpl-@", answer.body) == CHAT_STREAM


def test_each_event_of_a_stream_is_a_chunk_of_its_own(client: Client) -> None:
    chunks = client.chat(stream=True).chunks
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"data: ") == 1 for chunk in chunks[:-1])


def test_equal_requests_get_equal_bodies_and_other_requests_other_ids(client: Client) -> None:
    assert client.chat(stream=True).body == client.chat(stream=True).body
    assert client.chat(text="a").json["id"] != client.chat(text="b").json["id"]


def test_include_usage_adds_a_null_to_each_chunk_and_a_last_chunk_without_choices(client: Client) -> None:
    *chunks, last, done = events(client.chat(stream=True, stream_options={"include_usage": True}))
    assert done == (None, "[DONE]")
    assert all(chunk["usage"] is None for _, chunk in chunks)
    assert last[1]["choices"] == []
    assert last[1]["usage"]["total_tokens"] == 6


def test_a_chat_answer_echoes_the_last_user_message_and_counts_words(client: Client) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "and a second"}, {"type": "image_url", "image_url": {}}]},
    ]
    answer = client.chat(messages=messages)
    assert answer.json["choices"][0]["message"]["content"] == "and a second"
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert answer.json["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_on_tokens_cuts_the_text_and_says_length(client: Client, name: str) -> None:
    choice = client.chat(**{name: 2}).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")


def test_n_choices_are_given_in_json_and_streams(client: Client) -> None:
    assert [choice["index"] for choice in client.chat(n=2).json["choices"]] == [0, 1]
    streamed = [value for _, value in events(client.chat(n=2, stream=True)) if value != "[DONE]"]
    assert {chunk["choices"][0]["index"] for chunk in streamed} == {0, 1}


def test_a_response_has_text_and_usage(client: Client) -> None:
    response = client.post("/v1/responses", {"model": "gpt-4o", "input": "a b", "instructions": "be kind"}).json
    assert (response["object"], response["status"]) == ("response", "completed")
    assert response["output"][0]["content"][0]["text"] == "a b"
    assert response["usage"] == {
        "input_tokens": 4,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 6,
    }
    assert client.ask("GET", f"/v1/responses/{response['id']}").json == response


def test_a_response_stream_has_typed_numbered_events_and_no_done(client: Client) -> None:
    answer = client.post("/v1/responses", {"model": "gpt-4o", "input": "a b", "stream": True})
    assert answer.header("content-type") == "text/event-stream; charset=utf-8"
    found = events(answer)
    assert [name for name, _ in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert all(name == value["type"] for name, value in found)
    assert [value["sequence_number"] for _, value in found] == list(range(10))
    assert "".join(value["delta"] for _, value in found[4:6]) == "a b"
    assert found[0][1]["response"]["usage"] is None
    assert found[-1][1]["response"]["usage"]["total_tokens"] == 4


def test_a_response_cut_by_its_limit_is_incomplete(client: Client) -> None:
    answer = client.post("/v1/responses", {"model": "m", "input": "a b c", "max_output_tokens": 1, "stream": True})
    name, value = events(answer)[-1]
    assert (name, value["response"]["status"]) == ("response.incomplete", "incomplete")
    assert value["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_background_response_is_queued_then_runs_then_completes(client: Client) -> None:
    body = {"model": "m", "input": "work", "background": True}
    first = client.post("/v1/responses", body).json
    path = f"/v1/responses/{first['id']}"
    looks = [client.ask("GET", path).json for _ in range(2)]
    assert [r["status"] for r in (first, *looks)] == ["queued", "in_progress", "completed"]
    assert [r["usage"] is None for r in (first, *looks)] == [True, True, False]
    assert client.ask("DELETE", path).json["deleted"] is True
    assert client.ask("GET", path).status == 404


def test_only_a_background_response_can_be_cancelled(client: Client) -> None:
    running = client.post("/v1/responses", {"model": "m", "input": "x", "background": True}).json["id"]
    assert client.ask("POST", f"/v1/responses/{running}/cancel").json["status"] == "cancelled"
    finished = client.post("/v1/responses", {"model": "m", "input": "y"}).json["id"]
    assert client.ask("POST", f"/v1/responses/{finished}/cancel").status == 400


def test_completions_answer_each_prompt(client: Client) -> None:
    body: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": ["a b", "c"]}
    answer = client.post("/v1/completions", body).json
    assert (answer["object"], [choice["text"] for choice in answer["choices"]]) == ("text_completion", ["a b", "c"])
    assert answer["usage"]["total_tokens"] == 6
    streamed = events(
        client.post("/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
    )
    assert "".join(chunk["choices"][0]["text"] for _, chunk in streamed[:-2]) == "a bc"
    assert (streamed[-2][1]["usage"]["total_tokens"], streamed[-1][1]) == (6, "[DONE]")


def test_embeddings_are_the_same_numbers_as_floats_and_as_base64(client: Client) -> None:
    body = {"model": "text-embedding-3-small", "input": ["a", "b c"], "dimensions": 8}
    floats = client.post("/v1/embeddings", body).json
    packed = client.post("/v1/embeddings", body | {"encoding_format": "base64"}).json
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    for plain, coded in zip(floats["data"], packed["data"], strict=True):
        assert tuple(plain["embedding"]) == struct.unpack("<8f", base64.b64decode(coded["embedding"]))
        assert sum(x * x for x in plain["embedding"]) == pytest.approx(1, abs=1e-5)
    assert floats["data"][0]["embedding"] != floats["data"][1]["embedding"]


def test_models_are_listed_and_found_and_an_unknown_one_is_openais_404(client: Client) -> None:
    assert "gpt-4o" in [model["id"] for model in client.ask("GET", "/v1/models").json["data"]]
    assert client.ask("GET", "/v1/models/gpt-4o").json["owned_by"] == "system"
    missing = client.ask("GET", "/v1/models/gpt-99")
    assert missing.status == 404
    assert missing.json == {
        "error": {
            "message": "The model 'gpt-99' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_a_file_comes_back_byte_for_byte_and_can_be_deleted(client: Client) -> None:
    data = bytes(range(256)) * 1000 + b"\r\n--b0un\r\n"
    line, body = form(purpose=(None, b"batch"), file=("names.jsonl", data))
    made = client.ask("POST", "/v1/files", line, body=body).json
    assert (made["object"], made["bytes"], made["filename"]) == ("file", len(data), "names.jsonl")
    path = f"/v1/files/{made['id']}"
    content = client.ask("GET", f"{path}/content")
    assert (content.rest, content.header("content-type")) == (data, "application/octet-stream")
    assert client.ask("GET", path).json == made
    assert made in client.ask("GET", "/v1/files?purpose=batch&limit=100").json["data"]
    assert client.ask("DELETE", path).json == {"object": "file", "id": made["id"], "deleted": True}
    assert [client.ask("GET", p).status for p in (path, f"{path}/content")] == [404, 404]


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("Content-Type: application/json", b"{}"),
        ("Content-Type: multipart/form-data", b"--b0und--\r\n"),
        ("Content-Type: multipart/form-data; boundary=b0und", b"no boundary here"),
        ("Content-Type: multipart/form-data; boundary=b0und", form(file=("a", b"x"))[1][:-20]),
        ("Content-Type: multipart/form-data; boundary=b0und", form(**{f"p{n}": (None, b"") for n in range(65)})[1]),
    ],
)
def test_a_broken_form_is_400(client: Client, line: str, body: bytes) -> None:
    answer = client.ask("POST", "/v1/files", line, body=body)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


def test_speech_is_binary_streamed_and_depends_on_the_text(client: Client) -> None:
    answer = client.post("/v1/audio/speech", {"model": "tts-1", "voice": "alloy", "input": "x" * 20})
    assert (answer.header("content-type"), answer.header("transfer-encoding")) == ("audio/mpeg", "chunked")
    assert (len(answer.body), len(answer.chunks), set(answer.body)) == (20_000, 6, set(range(256)))
    other = {"model": "tts-1", "voice": "alloy", "input": "x", "response_format": "wav"}
    assert client.post("/v1/audio/speech", other).header("content-type") == "audio/wav"


def test_a_transcription_names_the_file_that_came(client: Client) -> None:
    audio = b"\x00\xff" * 5000
    line, body = form(file=("a.wav", audio), model=(None, b"whisper-1"))
    answer = client.ask("POST", "/v1/audio/transcriptions", line, body=body).json
    assert answer["text"] == f"a.wav has 10000 bytes of SHA-256 {hashlib.sha256(audio).hexdigest()}"
    assert answer["usage"] == {"type": "duration", "seconds": 1}
    line, body = form(file=("a.wav", audio), model=(None, b"whisper-1"), response_format=(None, b"text"))
    plain = client.ask("POST", "/v1/audio/transcriptions", line, body=body)
    assert (plain.header("content-type"), plain.rest.decode()) == ("text/plain; charset=utf-8", answer["text"] + "\n")


def test_moderations_flag_violence_only(client: Client) -> None:
    results = client.post("/v1/moderations", {"input": ["peace", "violence"]}).json["results"]
    assert [result["flagged"] for result in results] == [False, True]


def test_images_are_png_in_base64(client: Client) -> None:
    data = client.post("/v1/images/generations", {"model": "gpt-image-1", "prompt": "a dot", "n": 2}).json["data"]
    pictures = [base64.b64decode(item["b64_json"]) for item in data]
    assert all(picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures) and pictures[0] != pictures[1]


BATCH_LINE = {"method": "POST", "url": "/v1/chat/completions"}


def upload(client: Client, *lines: Any) -> str:
    data = b"".join(json.dumps(one).encode() + b"\n" for one in lines)
    line, body = form(purpose=(None, b"batch"), file=("in.jsonl", data))
    identity: str = client.ask("POST", "/v1/files", line, body=body).json["id"]
    return identity


def test_a_batch_answers_each_line_of_its_file_and_says_what_they_used(client: Client) -> None:
    bodies = [{"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} for text in ("a b", "c")]
    source = upload(client, *({"custom_id": str(n), **BATCH_LINE, "body": one} for n, one in enumerate([*bodies, {}])))
    wish = {"input_file_id": source, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    first, second = (client.post("/v1/batches", wish).json for _ in range(2))
    looks = [client.ask("GET", f"/v1/batches/{first['id']}").json for _ in range(2)]
    assert [batch["status"] for batch in (first, *looks)] == ["validating", "in_progress", "completed"]
    assert [batch["usage"] is None for batch in (first, *looks)] == [True, True, False]
    assert looks[-1]["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (looks[-1]["usage"]["total_tokens"], looks[-1]["model"]) == (6, "gpt-4o-2024-08-06")
    out = client.ask("GET", f"/v1/files/{looks[-1]['output_file_id']}/content").body.splitlines()
    answers = [json.loads(line)["response"] for line in out]
    assert [one["status_code"] for one in answers] == [200, 200, 400]
    assert answers[0]["body"]["choices"] == client.post("/v1/chat/completions", bodies[0]).json["choices"]
    assert client.ask("POST", f"/v1/batches/{second['id']}/cancel").json["status"] == "cancelling"
    assert client.ask("GET", f"/v1/batches/{second['id']}").json["status"] == "cancelled"
    assert client.ask("POST", f"/v1/batches/{first['id']}/cancel").status == 409
    page = client.ask("GET", "/v1/batches?limit=1").json
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == ([second["id"]], True)
    after = client.ask("GET", f"/v1/batches?limit=1&after={second['id']}").json
    assert [batch["id"] for batch in after["data"]] == [first["id"]]
    assert client.post("/v1/batches", wish | {"input_file_id": "file-none"}).status == 404


def test_a_batch_of_a_file_that_is_none_fails(client: Client) -> None:
    wish = {"input_file_id": upload(client, {}), "endpoint": "/v1/responses", "completion_window": "24h"}
    made = client.post("/v1/batches", wish).json
    failed = client.ask("GET", f"/v1/batches/{made['id']}").json
    assert (failed["status"], failed["errors"]["data"][0]["line"], failed["usage"]) == ("failed", 1, None)


def test_a_message_batch_ends_at_the_second_look_and_has_a_result_for_each_request(client: Client) -> None:
    params = {"model": "claude-opus-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "a b"}]}
    wish = {"requests": [{"custom_id": "x", "params": params}, {"custom_id": "y", "params": {"model": "m"}}]}
    made = client.post("/v1/messages/batches", wish).json
    path = f"/v1/messages/batches/{made['id']}"
    assert (made["processing_status"], made["request_counts"]["processing"]) == ("in_progress", 2)
    refused = client.ask("GET", f"{path}/results")
    assert (refused.status, refused.json["type"]) == (404, "error")
    looks = [client.ask("GET", path).json for _ in range(2)]
    assert [one["processing_status"] for one in looks] == ["in_progress", "ended"]
    assert looks[1]["results_url"].endswith(f"{path}/results")
    assert (looks[1]["request_counts"]["succeeded"], looks[1]["request_counts"]["errored"]) == (1, 1)
    answer = client.ask("GET", f"{path}/results")
    results = [json.loads(line) for line in answer.body.splitlines()]
    assert [(one["custom_id"], one["result"]["type"]) for one in results] == [("x", "succeeded"), ("y", "errored")]
    usage = results[0]["result"]["message"]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["service_tier"]) == (2, 2, "batch")
    other = client.post("/v1/messages/batches", wish).json
    path = f"/v1/messages/batches/{other['id']}"
    assert client.ask("POST", f"{path}/cancel").json["processing_status"] == "canceling"
    assert client.ask("GET", path).json["request_counts"]["canceled"] == 2
    listed = client.ask("GET", "/v1/messages/batches").json["data"]
    assert [one["id"] for one in listed[:2]] == [other["id"], made["id"]]


def test_a_background_response_is_taken_up_again_as_a_stream(client: Client) -> None:
    body = {"model": "m", "input": "a b", "background": True}
    first, second = (client.post("/v1/responses", body).json["id"] for _ in range(2))
    assert first != second
    whole = events(client.ask("GET", f"/v1/responses/{first}?stream=true"))
    assert (whole[0][0], whole[-1][0]) == ("response.created", "response.completed")
    assert whole[-1][1]["response"]["usage"]["total_tokens"] == 4
    rest = events(client.ask("GET", f"/v1/responses/{first}?stream=true&starting_after=2"))
    assert rest == whole[3:]


def test_messages_are_anthropics_in_json_and_as_a_stream(client: Client) -> None:
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "a b"}]}
    sent = json.dumps(body).encode()
    answer = client.ask("POST", "/v1/messages", "x-api-key: sk-ant-x", body=sent, key="").json
    assert (answer["content"], answer["stop_reason"]) == ([{"type": "text", "text": "a b"}], "end_turn")
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (2, 2)
    found = events(client.post("/v1/messages", body | {"stream": True}))
    assert [name for name, _ in found] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    refused = client.ask("POST", "/v1/messages", body=sent, key="")
    assert (refused.status, refused.json["error"]["type"]) == (401, "authentication_error")
