"""Which operation a request is, and that no way of writing its path makes it a laxer one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstack.usage.operations import (
    OTHER,
    UNKNOWN,
    model_of_path,
    operation_of,
    read_strictly,
    with_body,
    work_of_path,
)


@pytest.mark.parametrize(
    ("path", "name", "family", "body"),
    [
        (b"chat/completions", "chat", "chat", "json"),
        (b"completions", "text_completion", "completions", "json"),
        (b"embeddings", "embeddings", "embeddings", "json"),
        (b"responses", "responses", "responses", "json"),
        (b"responses/compact", "responses.compact", "responses", "json"),
        (b"moderations", "moderations", "moderations", "json"),
        (b"audio/speech", "speech", "audio", "json"),
        (b"audio/transcriptions", "transcription", "audio", "multipart"),
        (b"audio/translations", "translation", "audio", "multipart"),
        (b"images/generations", "image_generation", "images", "json"),
        (b"images/edits", "image_edit", "images", "multipart"),
        (b"images/variations", "image_variation", "images", "multipart"),
        (b"messages", "messages", "messages", "json"),
        (b"decisions", "decisions", "other", "json"),
    ],
)
def test_a_generating_call_is_known_by_its_path(path: bytes, name: str, family: str, body: str) -> None:
    operation = operation_of(b"POST", path)
    assert (operation.name, operation.family, operation.body) == (name, family, body)
    assert operation.generates
    assert operation.inference
    assert operation.begins is (path == b"responses")
    assert not operation.hidden
    assert not operation.model_in_path
    assert not operation_of(b"GET", path).generates
    assert not operation_of(b"DELETE", path).generates


@pytest.mark.parametrize(
    ("method", "path", "name", "work"),
    [
        (b"GET", b"responses/resp_68a1b2", "responses.retrieve", "response"),
        (b"HEAD", b"responses/resp_68a1b2", "responses.retrieve", "response"),
        (b"POST", b"responses/resp_68a1b2/cancel", "responses.cancel", "response"),
        (b"GET", b"batches", "batch.list", "batch"),
        (b"GET", b"batches/batch_1", "batch.retrieve", "batch"),
        (b"POST", b"batches/batch_1/cancel", "batch.cancel", "batch"),
        (b"GET", b"messages/batches", "batch.list", "message_batch"),
        (b"GET", b"messages/batches/msgbatch_1", "batch.retrieve", "message_batch"),
        (b"GET", b"messages/batches/msgbatch_1/results", "batch.results", "message_batch"),
        (b"POST", b"messages/batches/msgbatch_1/cancel", "batch.cancel", "message_batch"),
    ],
)
def test_work_whose_usage_is_known_late_can_be_seen_in_each_of_these(
    method: bytes, path: bytes, name: str, work: str
) -> None:
    operation = operation_of(method, path)
    assert (operation.name, operation.work) == (name, work)
    assert not operation.begins
    assert not operation.generates
    assert not operation.hidden


@pytest.mark.parametrize(
    ("path", "work"), [(b"responses", "response"), (b"batches", "batch"), (b"messages/batches", "message_batch")]
)
def test_what_begins_such_work_is_a_post(path: bytes, work: str) -> None:
    for written in (path, b"v1/" + path, b"openai/v1/" + path, path + b"/"):
        operation = operation_of(b"POST", written)
        assert operation.begins
        assert operation.work == work
        assert not operation_of(b"GET", written).begins


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        (b"messages/batches/msgbatch_1/results", "msgbatch_1"),
        (b"v1/messages/batches/msgbatch_1/results", "msgbatch_1"),
        (b"messages//batches/msgbatch%5F1/results/", "msgbatch_1"),
        (b"messages/batches/a/b/results", None),
        (b"messages/batches/msgbatch_1", None),
        (b"batches/msgbatch_1/results", None),
        (b"x/messages/batches/a/results", None),
    ],
)
def test_the_id_of_a_message_batch_stands_in_its_results_path(path: bytes, identity: str | None) -> None:
    assert work_of_path(path) == identity


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"GET", b"chat/completions"),
        (b"GET", b"chat/completions/chatcmpl-1"),
        (b"GET", b"chat/completions/chatcmpl-1/messages"),
        (b"DELETE", b"chat/completions/chatcmpl-1"),
        (b"GET", b"responses/resp_1/input_items"),
        (b"DELETE", b"responses/resp_1"),
        (b"POST", b"responses/input_tokens"),
        (b"POST", b"messages/count_tokens"),
        (b"DELETE", b"messages/batches/msgbatch_1"),
        (b"GET", b"batches/batch_1/other"),
        (b"GET", b"files/file-1/content"),
        (b"POST", b"files"),
        (b"POST", b"uploads/upload_1/parts"),
        (b"POST", b"conversations/conv_1/items"),
        (b"POST", b"fine_tuning/jobs/ftjob-1/cancel"),
        (b"GET", b"models"),
    ],
)
def test_what_neither_works_nor_reports_work_is_neither_charged_nor_hidden(method: bytes, path: bytes) -> None:
    operation = operation_of(method, path)
    assert operation not in (OTHER, UNKNOWN)
    assert not (operation.generates or operation.work or operation.hidden)


@pytest.mark.parametrize(
    "path",
    [
        b"batches", b"messages/batches", b"fine_tuning/jobs", b"fine_tuning/alpha/graders/run", b"fine-tunes",
        b"evals", b"evals/eval_1/runs", b"assistants", b"threads", b"threads/runs", b"threads/thread_1/runs",
        b"threads/thread_1/runs/run_1/submit_tool_outputs", b"realtime/client_secrets", b"realtime/sessions",
        b"realtime/calls", b"live/sessions", b"chatkit/sessions", b"agents", b"agents/sessions", b"vector_stores",
        b"vector_stores/vs_1/search", b"containers", b"videos", b"videos/video_1/remix", b"fine_tuning/jobs/a/resume",
        b"answers", b"edits", b"", b"v2/chat/completions", b"chat/completions;x=1", b"Chat/Completions",
        b"chat/completions/;x", b"chat/completions/%00", b"responses/a/b", b"chat%252Fcompletions",
        b"chat\\completions", b"chat/completions/chatcmpl-1", b"chat/completions/x/y", b"chat/completions/messages",
        b"chat/completions.json", b"chat/completions%3Fx", b"chat/completions%23", b"responses/resp_1",
        b"embeddings/x", b"deployments/d/chat/completions/x", b"v1/v1/chat/completions", b"responses/input_tokens/x",
    ],
)  # fmt: skip
def test_work_that_cannot_be_seen_and_what_is_not_known_is_hidden(path: bytes) -> None:
    operation = operation_of(b"POST", path)
    assert operation.hidden
    assert not (operation.generates or operation.inference)
    assert operation.begins is (operation.work is not None) is path.endswith(b"batches")


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"post", b"PURGE"])
def test_a_method_that_the_reference_has_not_is_unknown(method: bytes) -> None:
    assert operation_of(method, b"chat/completions") is UNKNOWN


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"POST"])
@pytest.mark.parametrize(
    "path",
    [
        b"no/such/path", b"Models", b"CHAT/completions", b"models/..%00/files", b"models/x%00", b"models/a%09b",
        b"models/x%0a", b"models/%c0%ae%c0%ae/files", b"models/%2e%2e%00/files", b"models/%252e%252e/files",
        b"models/..%20/files", b"models/x%3f/files", b"models/x%23", b"models/x;/files", b"models/x%3B",
        b"models/x%5Cy", b"models\\x", b"models/x%7F", b"models/\xc3\xa9", b"models/%EF%BC%8E%EF%BC%8E/files",
        b"models/.%2f..", b"models/%%", b"models/x?", b"models/../files",
    ],
)  # fmt: skip
def test_no_path_that_two_servers_read_differently_is_known(method: bytes, path: bytes) -> None:
    operation = operation_of(method, path)
    assert operation is UNKNOWN
    assert operation.hidden
    assert not operation.inference


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE"])
@pytest.mark.parametrize(
    "path",
    [b"assistants/asst_1", b"threads/thread_1/runs", b"fine_tuning/jobs/ftjob-1", b"vector_stores/vs_1",
     b"evals/eval_1", b"containers/cntr_1/files", b"videos/video_1/content", b"conversations/conv_1", b"files/file-1"],
)  # fmt: skip
def test_to_look_at_what_is_stored_or_to_remove_it_starts_nothing(method: bytes, path: bytes) -> None:
    operation = operation_of(method, path)
    assert operation.name not in ("other", "models")
    assert not (operation.hidden or operation.inference or operation.generates)


def test_options_starts_nothing() -> None:
    assert operation_of(b"OPTIONS", b"no/such/path") is OTHER
    assert not (OTHER.inference or OTHER.hidden)


@pytest.mark.parametrize(
    ("method", "path"),
    [(b"GET", b"chat/completions"), (b"GET", b"models"), (b"HEAD", b"responses/resp_1"),
     (b"DELETE", b"responses/resp_1"), (b"OPTIONS", b"chat/completions"), (b"POST", b"responses/resp_1/cancel"),
     (b"POST", b"batches/b_1/cancel"), (b"DELETE", b"models/ft:x"), (b"GET", b"files/file-1")],
)  # fmt: skip
def test_a_body_where_none_belongs_may_be_for_another_call(method: bytes, path: bytes) -> None:
    operation = operation_of(method, path)
    assert operation.bodiless
    other = with_body(operation)
    assert (other.name, other.work) == (operation.name, operation.work)
    assert other.hidden
    assert not other.inference
    assert with_body(operation) is other


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        (b"POST", b"chat/completions/x", "chat"), (b"POST", b"chat/completions/x/y", "chat"),
        (b"POST", b"Chat/Completions", "chat"), (b"POST", b"chat/completions.json", "chat"),
        (b"POST", b"chat%2Fcompletions;x", "chat"), (b"PUT", b"chat/completions", "chat"),
        (b"POST", b"v1/v1/chat//completions", "chat"), (b"POST", b"chat%5Ccompletions", "chat"),
        (b"POST", b"completions/x", "text_completion"), (b"POST", b"responses/x", "responses"),
        (b"POST", b"responses/compact/x", "responses.compact"), (b"POST", b"embeddings%00", "embeddings"),
        (b"POST", b"audio/transcriptions/x", "transcription"), (b"GET", b"chat/completions", "chat"),
        (b"POST", b"deployments/d/chat/completions/x", "chat"),
        (b"POST", b"openai/deployments/d/EMBEDDINGS", "embeddings"),
        (b"POST", b"responses/resp_1/cancel", "responses"),
    ],
)  # fmt: skip
def test_what_begins_as_a_generating_path_is_read_as_it_where_that_matters(
    method: bytes, path: bytes, name: str
) -> None:
    strict = read_strictly(with_body(operation_of(method, path)), path)
    assert (strict.name, strict.hidden, strict.generates) == (name, True, True)
    assert strict.body == read_strictly(UNKNOWN, path).body is not None
    assert strict.model_in_path == (b"deployments" in path)


@pytest.mark.parametrize("path", [b"threads/thread_1/messages", b"batches", b"videos", b"new/chat/completions", b"x"])
def test_other_hidden_work_stays_as_it_is(path: bytes) -> None:
    operation = operation_of(b"POST", path)
    assert read_strictly(operation, path) is operation


@pytest.mark.parametrize("path", [b"messages/batches", b"v1/messages//batches"])
def test_a_message_batch_is_read_where_its_key_is_limited(path: bytes) -> None:
    operation = operation_of(b"POST", path)
    strict = read_strictly(operation, path)
    assert (operation.body, strict.body) == (None, "json")
    assert (strict.name, strict.work, strict.begins, strict.hidden) == ("batch", "message_batch", True, True)


@pytest.mark.parametrize("path", [b"chat/completions", b"files", b"conversations", b"batches", b"responses"])
def test_a_body_where_one_belongs_changes_nothing(path: bytes) -> None:
    assert with_body(operation_of(b"POST", path)) is operation_of(b"POST", path)


@pytest.mark.parametrize("method", [b"POST", b"GET"])
@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (b"chat%2Fcompletions", b"chat/completions"),
        (b"chat%2fcompletions", b"chat/completions"),
        (b"%63hat/completions", b"chat/completions"),
        (b"chat/completions/", b"chat/completions"),
        (b"chat//completions", b"chat/completions"),
        (b"/chat/completions//", b"chat/completions"),
        (b"chat/completions%2F", b"chat/completions"),
        (b"%2Fresponses", b"responses"),
        (b"responses/resp%5Fabc", b"responses/resp_abc"),
        (b"responses/resp_abc/", b"responses/resp_abc"),
        (b"batches//batch_1", b"batches/batch_1"),
        (b"batches/batch_1%2Fcancel", b"batches/batch_1/cancel"),
        (b"%62atches", b"batches"),
        (b"openai/v1/responses", b"responses"),
        (b"v1/chat/completions", b"chat/completions"),
        (b"v1/%6Dodels", b"models"),
    ],
)
def test_a_path_written_otherwise_is_the_same_operation(method: bytes, written: bytes, plain: bytes) -> None:
    assert operation_of(method, written) is operation_of(method, plain)


@given(st.data())
def test_any_letters_may_be_percent_encoded_and_the_operation_stays(data: st.DataObject) -> None:
    method, path = data.draw(
        st.sampled_from([(b"POST", b"chat/completions"), (b"GET", b"responses/resp_1"), (b"POST", b"audio/speech")])
    )
    encoded = b"".join(b"%%%02X" % byte if data.draw(st.booleans()) else bytes((byte,)) for byte in path)
    assert operation_of(method, encoded) is operation_of(method, path)


@pytest.mark.parametrize(
    ("method", "path", "name", "model"),
    [
        (b"GET", b"models/gpt-4o", "models", "gpt-4o"),
        (b"GET", b"models/meta-llama%2FLlama-3", "models", "meta-llama/Llama-3"),
        (b"GET", b"v1/models/ft:gpt-4o:acme::x", "models", "ft:gpt-4o:acme::x"),
        (b"DELETE", b"models/ft:gpt-4o", "models.delete", "ft:gpt-4o"),
        (b"POST", b"deployments/my%20gpt/chat/completions", "chat", "my gpt"),
        (b"POST", b"openai/deployments/d/audio/transcriptions", "transcription", "d"),
        (b"POST", b"deployments/d/embeddings/", "embeddings", "d"),
        (b"POST", b"engines/davinci/completions", "text_completion", "davinci"),
    ],
)
def test_a_path_may_name_the_model(method: bytes, path: bytes, name: str, model: str) -> None:
    operation = operation_of(method, path)
    assert operation.name == name
    assert operation.model_in_path
    assert model_of_path(path) == model
    assert not operation.hidden


def test_a_deployment_s_call_is_the_plain_one_but_for_where_the_model_stands() -> None:
    plain, deployed = operation_of(b"POST", b"embeddings"), operation_of(b"POST", b"deployments/d/embeddings")
    assert deployed.generates
    assert (plain.family, plain.body) == (deployed.family, deployed.body)


@pytest.mark.parametrize(
    "path", [b"deployments/d/batches", b"deployments/d/x", b"deployments/d/extensions/chat/completions"]
)
def test_of_what_else_a_deployment_does_nothing_is_known(path: bytes) -> None:
    assert operation_of(b"POST", path) is UNKNOWN


@pytest.mark.parametrize("path", [b"files/file-1", b"", b"a/models/b", b"%25"])
def test_other_paths_name_no_model(path: bytes) -> None:
    assert model_of_path(path) is None


@given(st.sampled_from([b"GET", b"POST", b"DELETE", b"PUT"]), st.binary(max_size=40))
def test_any_bytes_are_some_operation(method: bytes, path: bytes) -> None:
    operation = operation_of(method, path)
    assert not (operation.hidden and operation.generates)
    model_of_path(path)
