//! A model whose tokenizer, template and parsers are real, and whose answers are written in a script.

use std::{path::Path, time::Instant};

use async_trait::async_trait;
use inference_core::{
    Alternative, Classification, ClassifyOptions, Error, Feature, FinishReason, GenerateOptions, ModelInfo,
    ModelManifest, ModelStats, Prompt, Result, StopCause, TemplateOptions, TextModel, Token, TokenStream,
    backend::SharedStats,
};
use inference_text::{PromptLimits, TextPipeline};

/// A template in the notation of Hermes and Qwen, with reasoning.
const TEMPLATE: &str = r#"{%- if tools %}<|im_start|>system
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
Call them as <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#;

/// What a tokenizer of the demo model's and the template above are made of.
#[derive(Debug)]
pub struct Scripted {
    info: ModelInfo,
    text: TextPipeline,
    stats: SharedStats,
}

impl Scripted {
    pub fn new() -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(demo.join(file), folder.path().join(file)).unwrap();
        }
        std::fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        let info = ModelInfo::from_manifest("scripted", &ModelManifest::read(&demo).unwrap()).unwrap();
        Self { info, text: TextPipeline::load(folder.path()).unwrap(), stats: SharedStats::default() }
    }
}

/// What the model says after a prompt: with tools, first the weather, then the conversion of what it was, then the answer.
fn script(prompt: &str) -> String {
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let result = |number: usize| {
        let responses = prompt.split("<tool_response>\n").skip(1);
        responses.filter_map(|rest| rest.split("\n</tool_response>").next()).nth(number)
    };
    let asked = prompt.rsplit("<|im_start|>user\n").next().unwrap_or_default();
    match (prompt.contains("<tools>"), result(0), result(1)) {
        (true, None, _) if asked.contains("both") => {
            "Both at once.".to_owned()
                + &call("weather", "{\"city\": \"Zürich\"}")
                + "\n"
                + &call("convert", "{\"celsius\": 20}")
        }
        (true, None, _) => {
            "<think>\nI need the weather.\n</think>\n\n".to_owned()
                + &call("weather", "{\"city\": \"Zürich\"}")
        }
        (true, Some(celsius), None) => call("convert", &format!("{{\"celsius\": {celsius}}}")),
        (true, Some(_), Some(fahrenheit)) => format!("It is {fahrenheit} °F in Zürich."),
        (false, ..) if prompt.ends_with("assistant\nIt is") => " warm today.".to_owned(),
        (false, ..) => "<think>\nA greeting.\n</think>\n\nHello from the script!".to_owned(),
    }
}

#[async_trait]
impl TextModel for Scripted {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Result<TokenStream> {
        self.text.check_options(&prompt, &options)?;
        let limits = PromptLimits::new(&self.info, 0);
        let prompt = self.text.prepare(prompt, &options.template, limits).await?;
        let tokenizer = self.text.tokenizer();
        let answer = tokenizer.encode(&script(&tokenizer.decode(&prompt.ids, false)), false)?;
        let (mut writer, stream) =
            self.text.response(&self.info, &self.stats, &prompt, &options, Instant::now())?;
        tokio::spawn(async move {
            writer.begin(0);
            let mut reason = (options.max_tokens_or_default() == 0).then_some(FinishReason::Length);
            for id in answer {
                if writer.is_full() {
                    writer.ready().await;
                }
                if writer.is_cancelled() {
                    reason = Some(FinishReason::Cancelled);
                }
                if reason.is_some() {
                    break;
                }
                reason = writer.push(token(id, &options));
                // Readers take each token as it comes.
                tokio::task::yield_now().await;
            }
            writer.end(Ok(reason.unwrap_or(FinishReason::Stop(StopCause::EndOfSequence(0)))));
        });
        Ok(stream)
    }

    async fn classify(&self, _: Vec<Prompt>, _: ClassifyOptions) -> Result<Vec<Classification>> {
        Err(Error::unsupported("scripted", Feature::Classify))
    }

    async fn tokenize(&self, prompt: Prompt, options: TemplateOptions) -> Result<Vec<u32>> {
        let limits = PromptLimits::without_context(&self.info);
        Ok(self.text.prepare(prompt, &options, limits).await?.ids)
    }

    async fn decode(&self, tokens: Vec<u32>) -> Result<String> {
        Ok(self.text.tokenizer().decode(&tokens, false))
    }

    fn stats(&self) -> ModelStats {
        self.stats.snapshot()
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Each token was as good as certain.
fn token(id: u32, options: &GenerateOptions) -> Token {
    let mut token = Token::new(id, "");
    if let Some(top) = options.log_probabilities {
        token.log_probability = Some(-0.01);
        let others = (1..top as u32).map(|other| Alternative::new(other, -5.0 - other as f32));
        token.top = std::iter::once(Alternative::new(id, -0.01)).take(top).chain(others).collect();
    }
    token
}
