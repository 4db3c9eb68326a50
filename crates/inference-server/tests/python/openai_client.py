"""What programs do with the package `openai`, against the server at the address given."""

import json
import sys

from openai import BadRequestError, NotFoundError, OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="unused")
MODEL = "gpt-scripted"
RESULTS = {"weather": lambda city: "20", "convert": lambda celsius: str(celsius * 9 / 5 + 32)[:2]}
PARAMETERS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "convert": {"type": "object", "properties": {"celsius": {"type": "number"}}, "required": ["celsius"]},
}
TOOLS = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in PARAMETERS.items()]
FLAT = [{"type": "function", "name": n, "parameters": p, "strict": False} for n, p in PARAMETERS.items()]
QUESTION = {"role": "user", "content": "How warm is it in Zürich, in °F?"}
HELLO = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def models():
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve(MODEL).id == "scripted"


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=2, seed=1, max_completion_tokens=100)
    assert [choice.message.content for choice in answer.choices] == ["Hello from the script!"] * 2
    assert answer.choices[0].message.reasoning_content == "A greeting."
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello from the script!"
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "Hello from the script!"


def chat_agent():
    messages, called = [QUESTION], []
    while True:
        message = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS).choices[0].message
        messages.append(message)
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            called.append(call.function.name)
            result = RESULTS[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert called == ["weather", "convert"], called
    assert message.content == "It is 68 °F in Zürich.", message


def completions():
    answer = client.completions.create(model=MODEL, prompt="Hi", max_tokens=5, logprobs=2)
    assert answer.choices[0].finish_reason == "length" and len(answer.choices[0].logprobs.tokens) == 5
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(model=MODEL, prompt="Hi", stream=True))
    assert "Hello from the script!" in text


def responses():
    answer = client.responses.create(model=MODEL, input="Hi", instructions="Be kind.")
    assert answer.output_text == "Hello from the script!" and answer.status == "completed"
    kinds, text = [], ""
    for event in client.responses.create(model=MODEL, input="Hi", stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == "Hello from the script!"
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        stream.until_done()
        assert stream.get_final_response().output_text == "Hello from the script!"
    assert client.responses.retrieve(answer.id).id == answer.id
    client.responses.delete(answer.id)


def responses_agent():
    called, answer = [], client.responses.create(model=MODEL, input=[QUESTION], tools=FLAT)
    while calls := [item for item in answer.output if item.type == "function_call"]:
        outputs = []
        for call in calls:
            called.append(call.name)
            result = RESULTS[call.name](**json.loads(call.arguments))
            outputs.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
        answer = client.responses.create(model=MODEL, input=outputs, tools=FLAT, previous_response_id=answer.id)
    assert called == ["weather", "convert"], called
    assert answer.output_text == "It is 68 °F in Zürich.", answer


def errors():
    for call, kind, param in [
        (lambda: client.chat.completions.create(model="gpt-9", messages=HELLO), NotFoundError, "model"),
        (lambda: client.chat.completions.create(model=MODEL, messages=HELLO, top_p=2), BadRequestError, "top_p"),
    ]:
        try:
            call()
        except kind as error:
            assert error.param == param, error
        else:
            raise AssertionError(f"expected {kind}")


for test in [models, chat, chat_agent, completions, responses, responses_agent, errors]:
    test()
    print("ok", test.__name__)
