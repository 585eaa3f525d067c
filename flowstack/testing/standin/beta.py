"""The Realtime API's beta form: flat sessions, and other names of some events and members (OpenAI migration guide)."""

from __future__ import annotations

from typing import Any

_EVENTS = {
    "conversation.item.added": "conversation.item.created",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
}
_SAME = ("model", "instructions", "tools", "tool_choice", "include")
_PARTS = {"output_text": "text", "output_audio": "audio"}
_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_NAMES = {form: name for name, form in _FORMATS.items()}


def session_of(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat session in the GA form; what is not in it stays out."""
    listening: dict[str, Any] = {
        new: flat[old]
        for old, new in (
            ("input_audio_transcription", "transcription"),
            ("input_audio_noise_reduction", "noise_reduction"),
            ("turn_detection", "turn_detection"),
        )
        if old in flat
    }
    speaking: dict[str, Any] = {name: flat[name] for name in ("voice", "speed") if name in flat}
    for side, name in ((listening, "input_audio_format"), (speaking, "output_audio_format")):
        if name in flat:
            side["format"] = {"type": _FORMATS.get(flat[name], flat[name])}
    session: dict[str, Any] = {name: flat[name] for name in _SAME if name in flat}
    if "modalities" in flat:
        session["output_modalities"] = ["audio"] if "audio" in flat["modalities"] else ["text"]
    if "max_response_output_tokens" in flat:
        session["max_output_tokens"] = flat["max_response_output_tokens"]
    return {**session, "audio": {"input": listening, "output": speaking}}


def event_of(event: dict[str, Any]) -> dict[str, Any]:
    """A server's event in the beta form."""
    told = {**event, "type": _EVENTS.get(event["type"], event["type"])}
    if "session" in told:
        told["session"] = _flat(told["session"])
    if "response" in told:
        told["response"] = _response(told["response"])
    if "item" in told:
        told["item"] = _item(told["item"])
    return told


def _flat(session: dict[str, Any]) -> dict[str, Any]:
    heard, said = session["audio"]["input"], session["audio"].get("output", {})
    flat = {name: session[name] for name in session if name not in ("audio", "type", "output_modalities")}
    if "max_output_tokens" in flat:
        flat["max_response_output_tokens"] = flat.pop("max_output_tokens")
    flat |= {
        "input_audio_format": _NAMES.get(heard["format"]["type"]),
        "input_audio_transcription": heard["transcription"],
        "turn_detection": heard["turn_detection"],
    }
    if said:
        spoken = "audio" in session["output_modalities"]
        flat |= {
            "modalities": ["audio", "text"] if spoken else ["text"],
            "output_audio_format": _NAMES.get(said["format"]["type"]),
            "voice": said["voice"],
        }
    return flat


def _response(response: dict[str, Any]) -> dict[str, Any]:
    old = {name: response[name] for name in response if name not in ("audio", "output_modalities")}
    spoken = "audio" in response["output_modalities"]
    output = [_item(item) for item in response["output"]]
    return {**old, "modalities": ["audio", "text"] if spoken else ["text"], "output": output}


def _item(item: dict[str, Any]) -> dict[str, Any]:
    parts = item.get("content")
    if not isinstance(parts, list):
        return item
    return {**item, "content": [{**part, "type": _PARTS.get(part.get("type"), part.get("type"))} for part in parts]}
