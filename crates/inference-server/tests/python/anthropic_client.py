"""What programs do with the package `anthropic`, against the server at the address given."""

import sys

from anthropic import Anthropic, BadRequestError, NotFoundError

client = Anthropic(base_url=sys.argv[1], api_key="unused")
MODEL = "scripted"
RESULTS = {"weather": lambda city: "20", "convert": lambda celsius: str(celsius * 9 / 5 + 32)[:2]}
TOOLS = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"name": "convert", "input_schema": {"type": "object", "properties": {"celsius": {"type": "number"}}}},
]
QUESTION = {"role": "user", "content": "How warm is it in Zürich, in °F?"}
HELLO = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}


def messages():
    answer = client.messages.create(
        **HELLO, system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[1].text == "Hello from the script!" and answer.stop_reason == "end_turn"
    assert client.messages.count_tokens(model=MODEL, messages=HELLO["messages"]).input_tokens > 0


def stream():
    with client.messages.stream(**HELLO) as events:
        assert "".join(events.text_stream) == "Hello from the script!"
        final = events.get_final_message()
    assert final.content[0].thinking == "A greeting." and final.usage.output_tokens > 0
    kinds = [event.type for event in client.messages.create(**HELLO, stream=True)]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


def agent():
    conversation, called = [QUESTION], []
    while True:
        with client.messages.stream(model=MODEL, max_tokens=200, messages=conversation, tools=TOOLS) as events:
            answer = events.get_final_message()
        conversation.append({"role": "assistant", "content": answer.content})
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            break
        assert answer.stop_reason == "tool_use"
        called += [call.name for call in calls]
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": RESULTS[call.name](**call.input)}
            for call in calls
        ]
        conversation.append({"role": "user", "content": results})
    assert called == ["weather", "convert"], called
    assert answer.content[-1].text == "It is 68 °F in Zürich.", answer


def errors():
    for fields, kind in [({"model": "claude-9"}, NotFoundError), ({"extra_body": {"top_p": 2}}, BadRequestError)]:
        try:
            client.messages.create(**{**HELLO, **fields})
        except kind as error:
            assert error.body["type"] == "error", error
        else:
            raise AssertionError(f"expected {kind}")


for test in [messages, stream, agent, errors]:
    test()
    print("ok", test.__name__)
