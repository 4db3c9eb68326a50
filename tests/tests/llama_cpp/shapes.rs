//! Answers that are held to a shape, by llama.cpp.

use std::collections::BTreeSet;

use futures::{executor::block_on, future::join_all};
use inference::{
    Completion, Constraint, Error, FinishReason, GenerateOptions, Message, Prompt, StopCause,
    TemplateOptions, TextModelExt as _, ToolChoice, llamacpp::LlamaCppOptions,
};
use inference_conformance::sampler;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::gguf_file::GgufFile;

use crate::{load, load_file, sampling::next, smollm2};

fn question(text: &str) -> Vec<Message> {
    vec![Message::user(text)]
}

fn ended(answer: &Completion) -> bool {
    matches!(answer.finish.reason, FinishReason::Stop(StopCause::EndOfSequence(_)))
}

fn city() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer", "minimum": 1, "maximum": 99_999_999}},
        "required": ["city", "people"], "additionalProperties": false,
    })
}

fn is_city(text: &str) -> bool {
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return false };
    let people = fields.get("people").and_then(Value::as_u64);
    fields.len() == 2
        && ["Paris", "Rome"].contains(&fields["city"].as_str().unwrap_or_default())
        && people.is_some_and(|people| (1..=99_999_999).contains(&people))
}

#[test]
fn each_kind_of_constraint_is_kept_however_tokens_are_chosen() {
    let model = load("llama_cpp");
    let ask = question("What is the capital of France?");
    let options = GenerateOptions::new().max_tokens(80);
    let ways = [
        options.clone().temperature(0.0),
        options.clone().temperature(1.5),
        options.clone().temperature(1.0).top_p(0.9).top_k(20),
        options.clone().temperature(1.0).min_p(0.05).repetition_penalty(1.2),
        options.temperature(1.0).presence_penalty(0.5).logit_bias([(7042, 3.0), (2, 50.0)]).min_tokens(2),
    ];
    let four_digits = |text: &str| text.len() == 6 && text[1..5].chars().all(|c| c.is_ascii_digit());
    let of_lark = |text: &str| ["yes!", "no!", "yes?", "no?"].contains(&text);
    for (seed, options) in (0..).zip(&ways) {
        let say = |constraint: Constraint| {
            let options = options.clone().seed(seed).constraint(constraint);
            block_on(model.complete(ask.clone(), options)).unwrap()
        };
        let answer = say(Constraint::json_schema(city()));
        assert!(ended(&answer) && is_city(&answer.text), "{:?} {:?}", answer.text, answer.finish.reason);
        assert_eq!(answer.text, say(Constraint::json_schema(city())).text, "a seed gives one answer");
        let answer = say(Constraint::regex(r"<[0-9]{4}>"));
        assert!(ended(&answer) && four_digits(&answer.text), "{:?}", answer.text);
        let answer = say(Constraint::lark("start: word mark\nword: \"yes\" | \"no\"\nmark: /[!?]/"));
        assert!(ended(&answer) && of_lark(&answer.text), "{:?}", answer.text);
        let answer = say(Constraint::choice(["é (x)", "Paris", "日本語"]));
        assert!(ended(&answer), "{:?}", answer.text);
        assert!(["é (x)", "Paris", "日本語"].contains(&answer.text.as_str()), "{:?}", answer.text);
    }
    let greedy =
        GenerateOptions::new().max_tokens(80).temperature(0.0).constraint(Constraint::json_schema(city()));
    let answer = block_on(model.complete(ask, greedy)).unwrap();
    assert!(answer.text.contains("Paris"), "{:?}", answer.text);
}

#[test]
fn long_texts_within_a_shape_are_the_models_own() {
    let model = load("llama_cpp");
    // Most tokens are allowed in a string, so that the server goes on alone there.
    let schema = json!({
        "type": "object", "properties": {"story": {"type": "string", "maxLength": 200}}, "required": ["story"], "additionalProperties": false,
    });
    let options = |seed| {
        let constraint = Constraint::json_schema(schema.clone());
        GenerateOptions::new().max_tokens(200).temperature(1.0).seed(seed).constraint(constraint)
    };
    for seed in 0..4 {
        let answer = block_on(model.complete(question("Tell me a story, in JSON."), options(seed))).unwrap();
        let value: Value = serde_json::from_str(&answer.text).unwrap();
        assert!(ended(&answer) && value["story"].as_str().unwrap().chars().count() <= 200, "{value}");
    }
}

#[test]
fn an_answer_that_is_cut_says_so() {
    let model = load("llama_cpp");
    let options =
        GenerateOptions::new().max_tokens(4).temperature(0.0).constraint(Constraint::json_schema(city()));
    let answer = block_on(model.complete(question("Who?"), options)).unwrap();
    assert_eq!((answer.finish.reason, answer.tokens.len()), (FinishReason::Length, 4));
    assert!(answer.text.starts_with('{') && !is_city(&answer.text));
}

#[test]
fn draws_follow_the_probabilities_of_what_may_be_said() {
    let model = load("llama_cpp");
    let texts = [" Paris", " the", " a", " located", " Rome"];
    let tokenize = |text: &str| block_on(model.tokenize(text.into(), TemplateOptions::new())).unwrap();
    let prompt = tokenize("The capital of France is");
    // The tokens that one of the texts may begin with.
    let begins = texts.iter().flat_map(|text| (1..=text.len()).map(|end| tokenize(&text[..end])));
    let allowed: BTreeSet<u32> = begins.filter(|ids| ids.len() == 1).map(|ids| ids[0]).collect();
    let log_probabilities = next(&*model, &prompt);
    let weights: Vec<f64> = allowed.iter().map(|id| log_probabilities[*id as usize].exp()).collect();
    let expected: Vec<f64> = weights.iter().map(|weight| weight / weights.iter().sum::<f64>()).collect();
    let draws = (0..240).map(|seed| {
        let options = GenerateOptions::new().max_tokens(1).temperature(1.0).seed(seed);
        model.complete(prompt.clone(), options.constraint(Constraint::choice(texts)))
    });
    let mut counts = vec![0_u64; allowed.len()];
    for draw in block_on(join_all(draws)) {
        let id = draw.unwrap().tokens[0].id;
        counts[allowed.iter().position(|other| *other == id).unwrap_or_else(|| panic!("{id}"))] += 1;
    }
    let test = sampler::chi_square(&counts, &expected);
    assert!(test.p_value > 1e-6, "{counts:?} of {expected:?}: χ² is {} of {}", test.statistic, test.degrees);
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Person {
    name: String,
    age: u8,
    likes: Vec<Colour>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Colour {
    Red,
    Green,
    Blue,
}

#[test]
fn values_of_the_callers_own_types_are_extracted() {
    let model = load("llama_cpp");
    let ask = || Prompt::Chat(question("Anna is 31 years old and likes red and blue. Who is it?"));
    let options = GenerateOptions::new().max_tokens(200).temperature(0.0);
    let person = block_on(model.extract::<Person>(ask(), options.clone())).unwrap();
    assert!(person.name.contains("Anna"), "{person:?}");
    let cut = block_on(model.extract::<Person>(ask(), options.max_tokens(3))).unwrap_err();
    assert!(matches!(&cut, Error::Incomplete { text, .. } if text.starts_with('{')), "{cut}");
}

#[test]
fn a_session_goes_on_after_a_constraint() {
    let model = load("llama_cpp");
    block_on(async {
        let mut session = model.session().await.unwrap();
        let options = GenerateOptions::new().max_tokens(8).temperature(0.0);
        let choice = options.clone().constraint(Constraint::choice(["Paris", "Rome"]));
        let city = session.complete("The capital of France is the city of ", choice).await.unwrap().text;
        assert_eq!(city, "Paris");
        let more = session.complete(". The capital of Italy is", options.clone()).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        session.save(file.path()).await.unwrap();
        let held = session.tokens().await;
        let mut loaded = model.load_session(file.path()).await.unwrap();
        assert_eq!(loaded.tokens().await, held);
        let alone = model.complete(held.clone(), options.clone()).await.unwrap();
        assert_eq!(
            loaded.complete("", options).await.map(|answer| answer.text).unwrap_or_default(),
            alone.text
        );
        assert!(!more.text.is_empty());
    });
}

/// A template in the notation of Hermes: SmolLM2's own knows no tools.
const TEMPLATE: &str = "{%- if tools %}{{- '<|im_start|>system\nCall tools as <tool_call>\n{\"name\": ..., \"arguments\": ...}\n</tool_call>\n' }}\
    {%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}\
    {%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

#[test]
fn calls_follow_their_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tools.gguf");
    let mut file = GgufFile::read(&smollm2()).unwrap();
    file.set_text("tokenizer.chat_template", TEMPLATE);
    file.write(&path).unwrap();
    let model = load_file("llama_cpp", &path, LlamaCppOptions::new()).unwrap();
    let tool = |strict: bool| json!({"type": "function", "function": {"name": "report", "strict": strict, "parameters": city()}});
    let ask = || question("Report that Rome has 2,800,000 people.");
    let options = GenerateOptions::new().max_tokens(120).temperature(0.0);
    for (temperature, seed) in [(0.0, 0), (1.0, 1), (1.0, 2)] {
        for choice in [ToolChoice::Required, ToolChoice::Named("report".into())] {
            let options = options.clone().temperature(temperature).seed(seed).tools(vec![tool(false)]);
            let answer = block_on(model.complete(ask(), options.tool_choice(choice))).unwrap();
            // Where it goes on calling, the limit cuts the last one.
            assert!(!ended(&answer) || answer.answer.unparsed_tool_calls.is_empty(), "{:?}", answer.text);
            assert!(!answer.answer.tool_calls.is_empty(), "{:?} {:?}", answer.text, answer.finish.reason);
            for call in &answer.answer.tool_calls {
                assert!(is_city(&Value::Object(call.arguments.clone()).to_string()), "{:?}", answer.text);
            }
        }
    }
    // Strict tools leave the text free, and hold the calls that there are.
    let strict = block_on(model.complete(ask(), options.tools(vec![tool(true)]))).unwrap();
    for call in &strict.answer.tool_calls {
        assert!(is_city(&Value::Object(call.arguments.clone()).to_string()), "{:?}", strict.text);
    }
}
