//! A conversation of 20 messages through a template of a published model's kind.

#![allow(missing_docs, reason = "what criterion's macros make has none")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot begin has failed")]

use chat_template::{Environment, Template};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Map, Value, json};

const SOURCE: &str = r#"
{%- macro text(content) -%}
    {%- if content is string -%}{{ content | trim }}
    {%- else -%}{%- for part in content if part.type == 'text' -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}
{%- endmacro %}
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n\n<tools>' }}
    {%- for tool in tools %}{{ '\n' ~ (tool | tojson) }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, calls=0) %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('no such role: ' ~ message.role) }}{% endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- set content = text(message.content) %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- set ns.calls = ns.calls + 1 %}
            {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' ~ (call.function.arguments | tojson) ~ '}\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#;

fn variables() -> Map<String, Value> {
    let messages: Vec<Value> = (0..20)
        .map(|at| match at % 4 {
            0 => json!({"role": "user", "content": format!("Question {at}: {}", "what is it about? ".repeat(20))}),
            1 => json!({"role": "assistant", "content": format!("<think>{}</think>\nLet me see.", "Hm. ".repeat(50)),
                "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": {"query": "it", "limit": at}}}]}),
            2 => json!({"role": "tool", "content": "[{\"title\": \"It\", \"text\": \"About it.\"}]".repeat(5)}),
            _ => json!({"role": "assistant", "content": [{"type": "text", "text": "It is about that. ".repeat(40)}]}),
        })
        .collect();
    let tool = json!({"type": "function", "function": {"name": "search", "description": "Searches.", "parameters": {
        "type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}, "required": ["query"]}}});
    let variables = json!({"messages": messages, "tools": [tool], "add_generation_prompt": true});
    variables.as_object().unwrap().clone()
}

fn bench(criterion: &mut Criterion) {
    let (environment, variables) = (Environment::new().global("bos_token", json!("<s>")), variables());
    let template = Template::parse(SOURCE).unwrap();
    let length = template.render_in(&environment, &variables).unwrap().len();
    criterion.bench_function(&format!("render 20 messages, {length} bytes"), |bencher| {
        bencher.iter(|| template.render_in(&environment, &variables));
    });
    criterion.bench_function("parse", |bencher| bencher.iter(|| Template::parse(SOURCE)));
}

criterion_group!(benches, bench);
criterion_main!(benches);
