//! Constraints without a model: texts of tokens that are drawn from the masks, judged by crate `jsonschema`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;

use futures::executor::block_on;
use inference_core::{
    Constraint, GenerateOptions, ModelInfo, Prompt, Result, TemplateOptions, backend::ConstraintRun,
};
use inference_text::{PromptLimits, TextPipeline};
use serde_json::{Value, json};

fn text() -> TextPipeline {
    TextPipeline::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))).unwrap()
}

fn start(text: &TextPipeline, constraint: Constraint) -> Result<ConstraintRun> {
    let mut info = ModelInfo::default();
    (info.vocab_size, info.context_length) = (text.tokenizer().vocab_size() + 3, 1024);
    let options = GenerateOptions::new().constraint(constraint);
    block_on(async {
        let prompt =
            text.prepare(Prompt::from("a"), &TemplateOptions::new(), PromptLimits::new(&info, 0)).await?;
        Ok(text.constraint(&prompt, &options, PromptLimits::new(&info, 0)).await?.unwrap())
    })
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A text of tokens that are drawn evenly from those allowed; `None` where it has no end within 400. Now and then tokens are taken
/// back, and each mask has to be what it was.
fn walk(text: &TextPipeline, run: &mut ConstraintRun, random: &mut Random) -> Option<String> {
    let eos = text.tokenizer().eos_ids().to_vec();
    let mut ids: Vec<u32> = Vec::new();
    let mut masks = Vec::new();
    for _ in 0..400 {
        let mask = run.mask().unwrap().clone();
        assert!(mask.ids().all(|id| (id as usize) < text.tokenizer().vocab_size()), "beyond the tokenizer");
        let allowed: Vec<u32> = mask.ids().collect();
        masks.push(mask);
        if eos.iter().any(|id| allowed.contains(id)) && random.below(2) == 0 {
            run.accept(eos[0]).unwrap();
            return Some(text.tokenizer().decode(&ids, false));
        }
        let drawn: Vec<u32> = allowed.into_iter().filter(|id| !eos.contains(id)).collect();
        let Some(id) = drawn.get(random.below(drawn.len().max(1))) else { continue };
        run.accept(*id).unwrap();
        ids.push(*id);
        if random.below(8) == 0 {
            let back = 1 + random.below(ids.len());
            run.rollback(back).unwrap();
            ids.truncate(ids.len() - back);
            assert_eq!(run.mask().unwrap(), &masks[ids.len()], "after {back} tokens were taken back");
            masks.truncate(ids.len());
        }
    }
    None
}

#[test]
fn whatever_is_drawn_is_valid() {
    let schemas = [
        json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}, "b": {"type": "integer"}}, "required": ["b"], "additionalProperties": false}),
        json!({"type": "object", "patternProperties": {"^[a-c]{1,2}$": {"type": "boolean"}}, "additionalProperties": false}),
        json!({"type": "array", "items": {"anyOf": [{"type": "null"}, {"type": "number", "minimum": -1.5, "maximum": 2.25}]}, "minItems": 1, "maxItems": 4}),
        json!({"type": "string", "minLength": 2, "maxLength": 6}),
        json!({"type": "string", "pattern": "^(ä|[a-c]{2})+\\d$", "maxLength": 8}),
        json!({"type": "integer", "multipleOf": 7, "minimum": -100, "maximum": 100}),
        json!({"oneOf": [{"type": "object", "properties": {"k": {"const": "x"}}, "required": ["k"], "additionalProperties": false}, {"type": "object", "properties": {"k": {"const": "y"}, "v": {"enum": [1, "é\n"]}}, "required": ["k", "v"], "additionalProperties": false}]}),
        json!({"$defs": {"node": {"type": "object", "properties": {"left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["left"], "additionalProperties": false}}, "$ref": "#/$defs/node"}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]}, {"properties": {"a": {"maximum": 9}}}], "additionalProperties": false, "properties": {"a": true}}),
        json!({"type": "string", "format": "date-time"}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"const": 1}, {"type": "boolean"}], "additionalItems": false, "minItems": 2}),
    ];
    let text = text();
    let mut random = Random(1);
    for schema in schemas {
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let mut whole = 0;
        for _ in 0..30 {
            let mut run = start(&text, Constraint::json_schema(schema.clone())).unwrap();
            let Some(said) = walk(&text, &mut run, &mut random) else { continue };
            let value: Value =
                serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said:?}: {error}"));
            assert!(validator.is_valid(&value), "{said:?} by {schema}");
            whole += 1;
        }
        assert!(whole >= 15, "{whole} of 30 texts of {schema} had an end");
    }
}

/// Whether the text is one of the constraint's, cut into tokens in one way.
fn takes(text: &TextPipeline, run: &mut ConstraintRun, said: &str) -> bool {
    for id in text.tokenizer().encode(said, false).unwrap() {
        if !run.mask().unwrap().allows(id) {
            return false;
        }
        run.accept(id).unwrap();
    }
    let mask = run.mask().unwrap();
    text.tokenizer().eos_ids().iter().any(|id| mask.allows(*id))
}

#[test]
fn masks_are_neither_too_wide_nor_too_narrow() {
    let text = text();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": -3, "maximum": 30}, "b": {"type": "array", "items": {"enum": ["x", "y z"]}, "maxItems": 2}}, "required": ["a"], "additionalProperties": false});
    let judge = |constraint: &Constraint, said: &str| {
        takes(&text, &mut start(&text, constraint.clone()).unwrap(), said)
    };
    let schema = Constraint::json_schema(schema);
    for (said, valid) in [
        ("{\"a\": 30}", true),
        ("{\"a\":-3,\"b\":[\"x\",\"y z\"]}", true),
        ("{\n  \"a\": 7,\n  \"b\": []\n}", true),
        ("{\"a\": 31}", false),
        ("{\"a\": 1.5}", false),
        ("{\"b\": []}", false),
        ("{\"a\": 1, \"c\": 2}", false),
        ("{\"a\": 1, \"b\": [\"x\", \"x\", \"x\"]}", false),
        ("{\"a\": 1", false),
        ("{\"a\": 1}}", false),
        ("", false),
        (" {\"a\": 1}", false),
    ] {
        assert_eq!(judge(&schema, said), valid, "{said:?}");
    }
    let date = Constraint::json_schema(json!({"type": "string", "format": "date"}));
    for (said, valid) in [
        ("2024-02-29", true),
        ("2000-02-29", true),
        ("1900-02-29", false),
        ("2023-02-29", false),
        ("2023-02-28", true),
        ("2024-02-30", false),
        ("2024-11-30", true),
        ("2024-11-31", false),
        ("2024-12-31", true),
    ] {
        assert_eq!(judge(&date, &format!("\"{said}\"")), valid, "{said}");
    }
    let regex = Constraint::regex(r"\w+@[a-z.]+|héé?\n/\\");
    for (said, valid) in
        [("grün@x.org", true), ("hé\n/\\", true), ("héé\n/\\", true), ("@x", false), ("hé\n/", false)]
    {
        assert_eq!(judge(&regex, said), valid, "{said:?}");
    }
    let choice = Constraint::choice(["a.b", "a", "é (x)"]);
    for (said, valid) in [("a", true), ("a.b", true), ("é (x)", true), ("axb", false), ("a.", false)] {
        assert_eq!(judge(&choice, said), valid, "{said:?}");
    }
}
