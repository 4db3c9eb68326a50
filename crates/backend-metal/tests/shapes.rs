//! Answers that are held to a shape, judged by validators that know nothing of how they were made.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use backend_metal as _;
use futures::{StreamExt as _, future::join_all};
use inference_core::{
    Completion, Constraint, Error, FinishReason, GenerateOptions, KvBits, LoadOptions, Message, Prompt,
    StopCause, TextModel, TextModelExt as _, ToolChoice, load_model,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

fn demo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))
}

async fn model() -> Arc<dyn TextModel> {
    load_model(demo()).backend("cpu").await.unwrap()
}

/// A copy of the demo model's folder, to be changed.
fn copy_of_demo() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// The demo model with random weights: the integers of all its matrices.
async fn random_model() -> Arc<dyn TextModel> {
    let folder = copy_of_demo();
    let path = folder.path().join("model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..start]).unwrap();
    let mut random = Random(3);
    for tensor in header.as_object().unwrap().values().filter(|tensor| tensor["dtype"] == "U32") {
        let [from, to] = [0, 1].map(|i| start + tensor["data_offsets"][i].as_u64().unwrap() as usize);
        file[from..to].fill_with(|| random.below(256) as u8);
    }
    std::fs::write(path, file).unwrap();
    load_model(folder.path()).backend("cpu").await.unwrap()
}

/// The demo model with another chat template.
async fn with_template(template: &str) -> Arc<dyn TextModel> {
    let folder = copy_of_demo();
    let path = folder.path().join("chat_template.jinja");
    let source = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, template.replace("BASE", &source)).unwrap();
    load_model(folder.path()).backend("cpu").await.unwrap()
}

fn question(n: u64) -> Prompt {
    Prompt::Chat(vec![Message::user(format!("What is {n}+{}?", n + 1))])
}

fn ended(completion: &Completion) -> bool {
    matches!(completion.finish.reason, FinishReason::Stop(StopCause::EndOfSequence(_)))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn schema(&mut self, depth: u64) -> Value {
        let kinds = if depth == 0 { 8 } else { 12 };
        match self.below(kinds) {
            0 => json!({"type": "string", "maxLength": 1 + self.below(12)}),
            1 => {
                let pattern = ["^[A-Z][a-z]{1,5}$", "^\\d{3}-\\d{2}$", "^(a|bc)+$"][self.below(3) as usize];
                json!({"type": "string", "pattern": pattern, "maxLength": 9})
            }
            2 => json!({"enum": ["red", "green", 3, null, {"a": [1]}]}),
            3 => {
                let low = self.below(200) as i64 - 100;
                json!({"type": "integer", "minimum": low, "maximum": low + self.below(300) as i64})
            }
            4 => json!({"type": "number", "minimum": 0, "exclusiveMaximum": 10}),
            5 => json!({"type": ["boolean", "null"]}),
            6 => {
                let format = ["date", "time", "uuid", "ipv4"][self.below(4) as usize];
                json!({"type": "string", "format": format})
            }
            7 => {
                let value = [json!("x"), json!(7), json!(true)][self.below(3) as usize].clone();
                json!({"const": value})
            }
            8 => {
                let least = self.below(2);
                json!({"type": "array", "items": self.schema(depth - 1), "minItems": least, "maxItems": least + self.below(3)})
            }
            9 => json!({"anyOf": [self.schema(depth - 1), self.schema(depth - 1)]}),
            10 => {
                json!({"type": "array", "prefixItems": [self.schema(depth - 1), {"type": "integer"}], "items": false, "minItems": 1})
            }
            _ => {
                let (mut properties, mut required) = (serde_json::Map::new(), Vec::new());
                for place in 0..1 + self.below(4) {
                    let name =
                        format!("{}{place}", ["name", "größe", "a \"b\"", "n"][self.below(4) as usize]);
                    properties.insert(name.clone(), self.schema(depth - 1));
                    if self.below(3) > 0 {
                        required.push(name);
                    }
                }
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
            }
        }
    }
}

/// Judges answers by crate `jsonschema`, with `format` as an assertion.
fn validates(schema: &Value, text: &str) -> Result<(), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("{text:?} is no JSON: {error}"))?;
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    validator.validate(&value).map_err(|error| format!("{text:?} by {schema}: {error}"))
}

/// How many requests: `SHAPES=2000` asks for more than CI does.
fn requests() -> u64 {
    std::env::var("SHAPES").ok().and_then(|n| n.parse().ok()).unwrap_or(160)
}

#[tokio::test]
async fn every_finished_answer_is_valid() {
    let (whole, cut) = valid_and_cut(&*model().await, 7, requests() / 2).await;
    assert!(whole > cut * 3, "{whole} whole, {cut} cut");
}

/// Its texts go on for longer: many are cut.
#[tokio::test]
async fn every_finished_answer_of_random_weights_is_valid() {
    let (whole, cut) = valid_and_cut(&*random_model().await, 8, requests() / 2).await;
    assert!(whole > cut, "{whole} whole, {cut} cut");
}

/// Judges answers with random schemas, in batches of eight: how many were finished, and valid, and how many were cut.
async fn valid_and_cut(model: &dyn TextModel, seed: u64, requests: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let (mut whole, mut cut, mut temperatures) = (0, 0, BTreeMap::new());
    for first in (0..requests).step_by(8) {
        let batch: Vec<(Value, GenerateOptions)> = (first..first + 8)
            .map(|n| {
                let mut schema = random.schema(2);
                if n % 4 == 0 {
                    schema = json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "v": schema}, "required": ["v"], "additionalProperties": false});
                }
                let temperature = [0.0, 0.5, 1.0, 2.0][random.below(4) as usize];
                let options = GenerateOptions::new().max_tokens(160).temperature(temperature).seed(n);
                (schema.clone(), options.constraint(Constraint::json_schema(schema)))
            })
            .collect();
        let answers = batch
            .iter()
            .enumerate()
            .map(|(n, (_, options))| model.complete(question(n as u64), options.clone()));
        for ((schema, options), answer) in batch.iter().zip(join_all(answers).await) {
            let answer = answer.unwrap_or_else(|error| panic!("{schema}: {error}"));
            if ended(&answer) {
                validates(schema, &answer.answer.text).unwrap();
                whole += 1;
                *temperatures.entry(options.sampling.temperature.unwrap().to_string()).or_insert(0) += 1;
            } else {
                assert_eq!(answer.finish.reason, FinishReason::Length);
                cut += 1;
            }
        }
    }
    println!("{whole} valid, {cut} cut; by temperature {temperatures:?}");
    (whole, cut)
}

#[tokio::test]
async fn it_goes_together_with_the_rest() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"], "additionalProperties": false});
    let shaped = GenerateOptions::new().max_tokens(60).constraint(Constraint::json_schema(schema.clone()));
    let shaped = shaped.temperature(1.2).seed(5);
    let model = model().await;
    let plain = model.complete(question(1), shaped.clone()).await.unwrap();
    validates(&schema, &plain.answer.text).unwrap();
    // Penalties, log-probabilities, filters and a processor of one's own.
    let eos = model.info().eos_token_ids[0];
    let options =
        shaped.clone().repetition_penalty(1.3).frequency_penalty(0.4).log_probabilities(3).top_p(0.9);
    let everything = options.top_k(20).min_p(0.01).logit_bias([(eos, 30.0)]).min_tokens(50);
    let answer = model.complete(question(1), everything.clone()).await.unwrap();
    assert!(ended(&answer), "where it can only end, it ends before min_tokens");
    validates(&schema, &answer.answer.text).unwrap();
    assert!(answer.tokens.iter().all(|token| token.log_probability.unwrap() <= 0.0));
    let forbidden = |_: &[u32], _: &[u32], logits: &mut [f32]| {
        logits.iter_mut().for_each(|logit| *logit = logit.max(-5.0) + 1.0);
    };
    let answer = model.complete(question(1), everything.logits_processor(forbidden)).await.unwrap();
    validates(&schema, &answer.answer.text).unwrap();
    // A stop string may cut it, and says so.
    let stopped = model.complete(question(1), shaped.clone().stop(["\"b\""])).await.unwrap();
    assert_eq!(stopped.finish.reason, FinishReason::Stop(StopCause::StopString("\"b\"".into())));
    assert!(plain.text.starts_with(&stopped.text));
    // Within a session, whose next turn goes on from there.
    let mut session = model.session().await.unwrap();
    let turn = session.complete(question(1), shaped.clone()).await.unwrap();
    assert_eq!(turn.text, plain.text);
    let second = session.complete("Once more.", shaped.clone()).await.unwrap();
    validates(&schema, &second.answer.text).unwrap();
    // With quantised keys and values, and by MLX's own operations.
    let quantised =
        load_model(demo()).backend("cpu").options(LoadOptions::new().kv_bits(KvBits::Eight)).await.unwrap();
    validates(&schema, &quantised.complete(question(1), shaped.clone()).await.unwrap().answer.text).unwrap();
    let mlx = load_model(demo())
        .backend("cpu")
        .options(LoadOptions::new().extension(backend_metal::DisableCpuKernels))
        .await
        .unwrap();
    validates(&schema, &mlx.complete(question(1), shaped).await.unwrap().answer.text).unwrap();
}

#[tokio::test]
async fn regular_expressions_grammars_and_choices() {
    let model = model().await;
    let say = async |constraint: Constraint, seed| {
        let options =
            GenerateOptions::new().max_tokens(80).temperature(1.5).seed(seed).constraint(constraint);
        model.complete(question(seed), options).await.unwrap()
    };
    let pattern = r"(v|V)\d{1,3}(\.\d{1,2}){2}(-[a-z]{2,6})?/[äöü✓]{2}";
    let whole = fancy_regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
    let lark =
        "start: pair (\", \" pair)~1..2\npair: NAME \"=\" NUMBER\nNAME: /[a-z]{1,4}/\nNUMBER: /[0-9]{1,3}/\n";
    let pairs = fancy_regex::Regex::new("^[a-z]{1,4}=[0-9]{1,3}(, [a-z]{1,4}=[0-9]{1,3}){1,2}$").unwrap();
    let texts = ["yes (of course)", "no", "d'accord", "no/yes \\ \"maybe\"\n"];
    for seed in 0..6 {
        let answer = say(Constraint::regex(pattern), seed).await;
        assert!(ended(&answer) && whole.is_match(&answer.text).unwrap(), "{:?}", answer.text);
        let answer = say(Constraint::lark(lark), seed).await;
        assert!(ended(&answer) && pairs.is_match(&answer.text).unwrap(), "{:?}", answer.text);
        let answer = say(Constraint::choice(texts), seed).await;
        assert!(ended(&answer) && texts.contains(&answer.text.as_str()), "{:?}", answer.text);
    }
}

#[tokio::test]
async fn reasoning_comes_first() {
    let opened = with_template("{% set x = '</think>' %}BASE{{ '<think>\\n' }}").await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"], "additionalProperties": false});
    let shaped = GenerateOptions::new()
        .max_tokens(90)
        .temperature(1.0)
        .constraint(Constraint::json_schema(schema.clone()));
    for seed in 0..6 {
        let answer =
            opened.complete(question(seed), shaped.clone().seed(seed).thinking_budget(12)).await.unwrap();
        assert!(ended(&answer), "{:?}", answer.text);
        assert!(!answer.answer.thinking.is_empty(), "{:?}", answer.text);
        validates(&schema, &answer.answer.text).unwrap();
    }
    // Without a limit the model may reason until it is cut; it may not end the text within reasoning.
    let eos = opened.info().eos_token_ids[0];
    let answer = opened.complete(question(1), shaped.clone().logit_bias([(eos, 100.0)])).await.unwrap();
    assert_eq!((answer.finish.reason, answer.answer.text.as_str()), (FinishReason::Length, ""));
    // Where the prompt opens no reasoning, the answer may have its shape at once.
    let free = with_template("{% set x = '<think></think>' %}BASE").await;
    let answer = free.complete(question(1), shaped.seed(1)).await.unwrap();
    validates(&schema, &answer.answer.text).unwrap();
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[allow(dead_code, reason = "what is read is not looked at one by one")]
struct Person {
    name: Name,
    age: u8,
    score: Option<bool>,
    role: Job,
    #[schemars(length(max = 2))]
    tags: Vec<Tag>,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
struct Name(#[schemars(length(max = 8))] String);

#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Job {
    Baker,
    Pilot,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[allow(dead_code, reason = "what is read is not looked at one by one")]
enum Tag {
    Short { n: u8 },
    Long { yes: bool },
}

#[tokio::test]
async fn typed_values_grow_and_are_whole() {
    let model = model().await;
    let mut whole = 0;
    for seed in 0..8 {
        let options = GenerateOptions::new().max_tokens(400).temperature(1.0).seed(seed);
        let question = vec![Message::user("Who is it?")];
        let mut stream = model.extract_stream::<Person>(question.clone(), options.clone()).await.unwrap();
        let mut last = Value::Null;
        while let Some(value) = stream.next().await {
            let value = value.unwrap();
            assert_ne!(value, last);
            last = value;
        }
        match (stream.finish().await, model.extract::<Person>(question, options).await) {
            (Ok(grown), Ok(person)) => {
                assert_eq!(grown, person);
                assert_eq!(serde_json::from_value::<Person>(last).unwrap(), person);
                whole += 1;
            }
            (Err(Error::Incomplete { reason, .. }), Err(_)) => assert_eq!(reason, FinishReason::Length),
            (grown, person) => panic!("{grown:?}, {person:?}"),
        }
    }
    assert!(whole >= 4, "{whole} of 8 were whole");
    let cut = model.extract::<Person>("Who?", GenerateOptions::new().max_tokens(3)).await.unwrap_err();
    assert!(matches!(&cut, Error::Incomplete { text, .. } if text.starts_with('{')), "{cut}");
}

const TOOL_TEMPLATES: [(&str, &str); 6] = [
    ("hermes", "{% if tools %}{{ '{\"name\": <tool_call></tool_call>' }}{% endif %}BASE"),
    ("qwen3-coder", "{% if tools %}{{ '<tool_call><function=a></function></tool_call>' }}{% endif %}BASE"),
    ("glm", "{% if tools %}{{ '<tool_call>a<arg_key>b</arg_key></tool_call>' }}{% endif %}BASE"),
    ("mistral", "{% if tools %}{{ '[TOOL_CALLS]' }}{% endif %}BASE"),
    ("lfm2", "{% if tools %}{{ '<|tool_call_start|>[]<|tool_call_end|>' }}{% endif %}BASE"),
    ("llama 3", "{% if tools %}{{ '<|python_tag|>' }}{% endif %}BASE"),
];

/// A text without quotes has no bound on its length; without one, others go on for long.
fn tools(strict: bool, family: &str) -> Vec<Value> {
    let mut parameters = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"type": "string", "enum": ["C", "F"]}, "deep": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": false},
        },
        "required": ["days", "unit"], "additionalProperties": false,
    });
    if !["qwen3-coder", "glm"].contains(&family) {
        parameters["properties"]["city"]["maxLength"] = json!(8);
    }
    let clock = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}});
    vec![tool("weather", parameters), tool("clock", clock)]
}

fn check_calls(family: &str, answer: &Completion) {
    assert!(answer.answer.unparsed_tool_calls.is_empty(), "{family}: {:?}", answer.text);
    for call in &answer.answer.tool_calls {
        let definition = tools(true, family)
            .into_iter()
            .find(|tool| tool["function"]["name"] == call.name.as_str())
            .unwrap();
        let arguments = Value::Object(call.arguments.clone()).to_string();
        validates(&definition["function"]["parameters"], &arguments)
            .unwrap_or_else(|error| panic!("{family}: {error} in {:?}", answer.text));
    }
}

#[tokio::test]
async fn required_calls_follow_their_schemas_in_each_notation() {
    for (family, template) in TOOL_TEMPLATES {
        let model = with_template(template).await;
        let mut called = 0;
        for seed in 0..6 {
            // This model was never taught to end an answer behind a call.
            let eager = model.info().eos_token_ids.iter().map(|id| (*id, 20.0));
            let options =
                GenerateOptions::new().max_tokens(300).temperature(1.0).seed(seed).logit_bias(eager);
            let options = options.tools(tools(false, family));
            // Where calls stand in one list, it may go on without end; a tool that is named is called once.
            for choice in [ToolChoice::Required, ToolChoice::Named("weather".into())] {
                let options = options.clone().tool_choice(choice);
                let answer = model.complete(question(seed), options).await.unwrap();
                if ended(&answer) {
                    assert!(!answer.answer.tool_calls.is_empty(), "{family}: {:?}", answer.text);
                    check_calls(family, &answer);
                    called += 1;
                }
            }
            let named = options.tool_choice(ToolChoice::Named("clock".into()));
            let answer = model.complete(question(seed), named).await.unwrap();
            assert!(ended(&answer), "{family}: {:?}", answer.text);
            let names: Vec<&str> = answer.answer.tool_calls.iter().map(|call| call.name.as_str()).collect();
            assert_eq!(
                (names, answer.answer.text.as_str()),
                (vec!["clock"], ""),
                "{family}: {:?}",
                answer.text
            );
        }
        assert!(called >= 2, "{family}: {called} of 12 were whole");
    }
}

#[tokio::test]
async fn strict_tools_leave_the_text_free() {
    for (family, template) in TOOL_TEMPLATES {
        let model = with_template(template).await;
        let options = GenerateOptions::new().max_tokens(60).tools(tools(true, family));
        // What it says of itself has no call: the demo model knows none.
        let free = model.complete(question(3), options.clone().tools(tools(false, family))).await.unwrap();
        let strict = model.complete(question(3), options).await.unwrap();
        assert_eq!(strict.text, free.text, "{family}");
        assert!(ended(&strict) && strict.answer.tool_calls.is_empty(), "{family}: {:?}", strict.text);
    }
}

#[tokio::test]
async fn what_cannot_be_held_to_is_refused_by_name_before_the_first_token() {
    let model = model().await;
    let refuse = async |constraint: Constraint| {
        let before = model.stats().requests;
        let options = GenerateOptions::new().max_tokens(4).constraint(constraint);
        let error = model.generate(question(1), options).await.map(drop).unwrap_err();
        assert_eq!(model.stats().requests, before, "{error}");
        assert!(matches!(error, Error::InvalidOption { option: "constraint", .. }), "{error}");
        error.to_string()
    };
    let schemas = [
        (json!({"not": {"type": "string"}}), "`not`"),
        (json!({"type": "array", "uniqueItems": true}), "`uniqueItems`"),
        (json!({"type": "array", "contains": {"type": "null"}}), "`contains`"),
        (json!({"type": "object", "propertyNames": {"maxLength": 3}}), "`propertyNames`"),
        (json!({"if": {"type": "string"}, "then": {"minLength": 2}}), "`if`"),
        (json!({"type": "object", "dependentRequired": {"a": ["b"]}}), "`dependentRequired`"),
        (json!({"oneOf": [{"type": "integer"}, {"minimum": 3}]}), "`oneOf`"),
        (json!({"$ref": "https://example.com/schema"}), "https://example.com/schema"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"type": "object", "properties": {"a": {"$id": "x", "type": "string"}}}), "`$id`"),
        (json!({"x-guidance": {"lenient": true}}), "`x-guidance`"),
        (json!({"type": "text"}), "text"),
        (json!({"type": "string", "format": "nonsense"}), "nonsense"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "5"),
        (json!({"type": "string", "pattern": "(?<=a)b"}), "(?<=a)b"),
        (json!(false), "false"),
        (json!(7), "7"),
    ];
    for (schema, named) in schemas {
        let said = refuse(Constraint::json_schema(schema.clone())).await;
        assert!(said.contains(named), "{schema}: {said}");
        assert!(said.len() < 600 && !said.contains("panic"), "{schema}: {said}");
    }
    refuse(Constraint::regex("(a")).await;
    refuse(Constraint::lark("begin: \"a\"")).await;
    refuse(Constraint::lark("start: nothing")).await;
    refuse(Constraint::choice::<String>([])).await;
    let options = GenerateOptions::new().ignore_eos(true).constraint(Constraint::choice(["a"]));
    let error = model.generate(question(1), options).await.map(drop).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "ignore_eos", .. }), "{error}");
}

#[tokio::test]
async fn hostile_constraints_end_soon_and_hold_nobody_up() {
    let model = model().await;
    let mut deep = json!({"type": "integer"});
    for _ in 0..400 {
        deep = json!({"type": "array", "items": deep});
    }
    let wide: serde_json::Map<String, Value> =
        (0..3000).map(|n| (format!("p{n}"), json!({"$ref": "#"}))).collect();
    let combined: Vec<Value> = (0..40)
        .map(|n| json!({"anyOf": [{"properties": {format!("a{n}"): {"type": "string"}}}, {"properties": {format!("b{n}"): {"type": "integer"}}}]}))
        .collect();
    let hostile = [
        Constraint::json_schema(deep),
        Constraint::json_schema(json!({"type": "object", "properties": wide, "additionalProperties": false})),
        Constraint::json_schema(json!({"allOf": combined})),
        Constraint::json_schema(json!({"$ref": "#"})),
        Constraint::json_schema(json!({"type": "string", "minLength": 100_000, "maxLength": 4_000_000})),
        Constraint::json_schema(
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000}),
        ),
        Constraint::json_schema(json!({"enum": (0..20_000).map(|n| format!("{n:09}")).collect::<Vec<_>>()})),
        Constraint::regex("(a{1,1000}){1,1000}"),
        Constraint::regex("(.*a.{200}){20}"),
        Constraint::regex(format!("{}a{}", "(".repeat(40_000), ")*".repeat(40_000))),
        Constraint::lark(format!("start: {}\"a\"{}", "(".repeat(40_000), ")".repeat(40_000))),
        Constraint::lark("start: a\na: a a | b\nb: b | \"x\" | a"),
        Constraint::lark(format!(
            "start: {}",
            (0..3000).map(|n| format!("r{n}?")).collect::<Vec<_>>().join(" ")
                + &(0..3000).map(|n| format!("\nr{n}: \"a\"")).collect::<String>()
        )),
        Constraint::regex("x".repeat(1 << 20)),
    ];
    let neighbour = ["yes", "no"];
    for constraint in hostile {
        let said = format!("{constraint:?}").chars().take(90).collect::<String>();
        let began = Instant::now();
        let options = GenerateOptions::new().max_tokens(12).temperature(1.0).seed(1);
        let held = options.clone().constraint(Constraint::choice(neighbour));
        let (result, beside) = futures::future::join(
            model.complete(question(1), options.constraint(constraint)),
            model.complete(question(2), held),
        )
        .await;
        let took = began.elapsed();
        println!(
            "{:5} ms  {said}: {}",
            took.as_millis(),
            result
                .map_or_else(|e| e.to_string(), |a| format!("{:?}", a.text))
                .chars()
                .take(150)
                .collect::<String>()
        );
        assert!(neighbour.contains(&beside.unwrap().text.as_str()));
        assert!(took.as_secs() < 10, "{took:?} for {said}");
    }
}
