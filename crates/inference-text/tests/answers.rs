//! A turn with a tool, in the notations of several families: a scripted model's tokens become parts, the parts become the next
//! message, and the template writes them as the model did.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use std::time::Instant;

use futures::{StreamExt as _, executor::block_on};
use inference_core::{
    AssistantMessage, ChatEvent, FinishReason, GenerateOptions, Message, ModelInfo, Prompt, Token,
    TokenStream, backend::SharedStats,
};
use inference_text::{Prepared, PromptLimits, TextPipeline};
use serde_json::{Value, json};
use support::*;

/// How a family writes a conversation, and what it answers in the script.
struct Family {
    name: &'static str,
    /// Tokens that a text for readers leaves out.
    special: &'static [&'static str],
    template: &'static str,
    answer: &'static str,
    thinking: &'static str,
    text: &'static str,
    /// What the next prompt has of the answer, where the template drops reasoning.
    kept: &'static str,
}

const QWEN: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}\
    calls go within <tool_call></tool_call><|im_end|>\n{% endif %}\
    {% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n\
    {% else %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}\
    {% for call in m.tool_calls %}{% if m.content or not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n\
    {\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n\
    {% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const MISTRAL: &str = "<s>{% for m in messages %}{% if m.role == 'user' %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]\
    {% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}{{ m.content }}{% for call in m.tool_calls %}\
    {% if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}\
    [TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}</s>\
    {% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.tool_call_id }}[TOOL_CONTENT]{{ m.content }}[/TOOL_RESULTS]\
    {% else %}{{ m.content }}</s>{% endif %}{% endfor %}";

const LLAMA: &str = "<|begin_of_text|>{% for m in messages %}{% if m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n\
    {\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>\
    {% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n\
    {% if tools and m.role == 'user' %}Answer with <|python_tag|> or JSON. {{ tools | tojson }} {% endif %}{{ m.content }}<|eot_id|>{% endif %}\
    {% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

/// It begins the answer within reasoning and takes reasoning out of the history.
const DEEPSEEK: &str = "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}\
    {% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>\
    {% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% for call in m.tool_calls %}\
    <｜tool▁call▁begin｜>{{ call.function.name }}<｜tool▁sep｜>{{ call.function.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}\
    <｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}";

const GPT_OSS: &str = "{% for m in messages %}{% if m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant<|channel|>commentary\
    <|message|>{{ m.content }}<|end|>{% elif m.role == 'assistant' %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>\
    {{ m.thinking }}<|end|>{% endif %}{% for call in m.tool_calls %}<|start|>assistant<|channel|>commentary to=functions.{{ call.function.name }} \
    <|constrain|>json<|message|>{{ call.function.arguments | tojson }}<|call|>{% endfor %}\
    {% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|start|>assistant{% endif %}";

const FAMILIES: &[Family] = &[
    Family {
        name: "Qwen",
        special: &["<|im_start|>", "<|im_end|>"],
        template: QWEN,
        answer: "<think>\nA tool knows.\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}\n</tool_call>",
        thinking: "A tool knows.",
        text: "I look.",
        kept: "<think>\nA tool knows.\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 2}}\n</tool_call>",
    },
    Family {
        name: "Mistral",
        special: &[
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[CALL_ID]",
            "[TOOL_RESULTS]",
        ],
        template: MISTRAL,
        answer: "I look.[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{\"city\": \"Zürich\", \"days\": 2}",
        thinking: "",
        text: "I look.",
        kept: "I look.[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{\"city\": \"Zürich\", \"days\": 2}</s>",
    },
    Family {
        name: "Llama",
        special: &[
            "<|begin_of_text|>",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|python_tag|>",
        ],
        template: LLAMA,
        answer: "{\"name\": \"weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2}}",
        thinking: "",
        text: "",
        kept: "{\"name\": \"weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2}}",
    },
    Family {
        name: "DeepSeek",
        special: &[
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
        ],
        template: DEEPSEEK,
        answer: "A tool knows.\n</think>\n\nI look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Zürich\", \"days\": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        thinking: "A tool knows.",
        text: "I look.",
        kept: "<｜Assistant｜>I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Zürich\", \"days\": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    },
    Family {
        name: "gpt-oss",
        special: &[
            "<|start|>",
            "<|channel|>",
            "<|message|>",
            "<|end|>",
            "<|call|>",
            "<|constrain|>",
            "<|return|>",
        ],
        template: GPT_OSS,
        answer: "<|channel|>analysis<|message|>A tool knows.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Zürich\", \"days\": 2}",
        thinking: "A tool knows.",
        text: "",
        kept: "<|channel|>analysis<|message|>A tool knows.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Zürich\", \"days\": 2}<|call|>",
    },
];

impl Family {
    fn text(&self) -> TextPipeline {
        let mut tokenizer = byte_level(WORDS);
        let first = tokenizer["model"]["vocab"].as_object().unwrap().len();
        let added = self.special.iter().enumerate().map(|(at, text)| special(first + at, text)).collect();
        tokenizer["added_tokens"] = Value::Array(added);
        let folder = folder(&[("tokenizer.json", &tokenizer)]);
        // All of them take tools; not all of these excerpts write them.
        let template = format!("{{# tools #}}{}", self.template);
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        TextPipeline::load(folder.path()).unwrap()
    }
}

fn info() -> ModelInfo {
    let mut info = ModelInfo::default();
    (info.vocab_size, info.context_length) = (10_000, 10_000);
    info
}

fn options() -> GenerateOptions {
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    GenerateOptions::new()
        .tools([json!({"type": "function", "function": {"name": "weather", "parameters": parameters}})])
}

/// A stream of these ids, as an engine makes it.
fn say(pipeline: &TextPipeline, prompt: &Prepared, ids: &[u32]) -> TokenStream {
    let (stats, options) = (SharedStats::default(), options().max_tokens(usize::MAX));
    let (mut writer, stream) = pipeline.response(&info(), &stats, prompt, &options, Instant::now()).unwrap();
    for id in ids {
        writer.push(Token::new(*id, ""));
    }
    writer.end(Ok(FinishReason::Length));
    stream
}

#[test]
fn calls_and_results_go_back_as_the_model_wrote_them() {
    for family in FAMILIES {
        let (Family { name, answer: written, thinking, text, kept, .. }, pipeline) = (family, family.text());
        let render = |messages: &[Message]| {
            let prompt = Prompt::Chat(messages.to_vec());
            pipeline.prepare_blocking(prompt, &options().template, &PromptLimits::new(&info(), 0)).unwrap()
        };
        let mut messages = vec![Message::user("How is the weather in Zürich?")];
        let prompt = render(&messages);
        let ids = pipeline.tokenizer().encode(written, false).unwrap();
        let events: Vec<ChatEvent> =
            block_on(say(&pipeline, &prompt, &ids).events().map(Result::unwrap).collect());
        assert_eq!(events.iter().map(ChatEvent::raw).collect::<String>(), *written, "{name}");

        let mut answer = AssistantMessage::default();
        answer.extend(events);
        assert_eq!((answer.thinking.as_str(), answer.text.as_str()), (*thinking, *text), "{name}");
        assert_eq!(answer.unparsed_tool_calls, Vec::<String>::new(), "{name}");
        let [call] = &answer.tool_calls[..] else { panic!("{name}: {answer:?}") };
        assert_eq!((call.name.as_str(), call.id.len()), ("weather", 9), "{name}");
        assert_eq!(Value::Object(call.arguments.clone()), json!({"city": "Zürich", "days": 2}), "{name}");

        messages.extend([answer.message(), Message::tool_result(call, "18 °C, sunny")]);
        let next = pipeline.tokenizer().decode(&render(&messages).ids, false);
        assert!(next.contains(kept), "{name}: {next}");
        assert!(next.split_once(kept).unwrap().1.contains("18 °C, sunny"), "{name}: {next}");
    }
}

#[test]
fn a_budget_counts_reasoning_and_nothing_else() {
    for (name, answer, closing) in [
        ("Qwen", "<think>abc", "</think>"),
        ("DeepSeek", "abc", "</think>"),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>abc",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ] {
        let pipeline = FAMILIES.iter().find(|family| family.name == name).unwrap().text();
        let encode = |text: &str| pipeline.tokenizer().encode(text, false).unwrap();
        let chat = Prompt::Chat(vec![Message::user("Hi")]);
        let prompt =
            pipeline.prepare_blocking(chat, &options().template, &PromptLimits::new(&info(), 0)).unwrap();
        let mut budget = pipeline.thinking_budget(&prompt, &options().thinking_budget(3)).unwrap();
        for id in encode(answer) {
            assert!(!budget.is_spent(), "{name}");
            budget.push(id);
        }
        assert!(budget.is_spent(), "{name}: three letters are three tokens");
        assert_eq!(budget.closing(), encode(closing), "{name}");
        let closing = budget.closing().to_vec();
        closing.into_iter().for_each(|id| budget.push(id));
        assert!(!budget.is_spent(), "{name}: its end was said");
        encode("and so on").into_iter().for_each(|id| budget.push(id));
        assert!(!budget.is_spent() && !budget.may_be_spent_after(9), "{name}");
    }
    let mistral = FAMILIES.iter().find(|family| family.name == "Mistral").unwrap().text();
    assert!(mistral.thinking_budget(&Prepared::default(), &options().thinking_budget(3)).is_none());
    let unset = FAMILIES[0].text();
    assert!(unset.thinking_budget(&Prepared::default(), &options()).is_none());
}
