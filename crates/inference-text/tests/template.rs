//! Chat templates: against what Python's Jinja2 makes of the same sources, and against templates that mean harm.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use std::time::{Duration, Instant};

use inference_core::{Error, GenerateOptions, Message, Result, TemplateOptions};
use inference_text::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};
use support::*;

fn template(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::new(source, &SpecialTokens::default())
}

fn render(source: &str) -> Result<String> {
    template(source)?.render_variables(&Map::new())
}

/// `tests/data/make_jinja2.py` makes the expectations.
#[test]
fn templates_give_what_pythons_jinja2_gives() {
    let data: Value = serde_json::from_str(include_str!("data/jinja2.json")).unwrap();
    let (variables, now) = (data["vars"].as_object().unwrap(), data["now"].as_str().unwrap());
    let cases = data["cases"].as_array().unwrap();
    assert!(cases.len() > 180);
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let source = case["source"].as_str().unwrap();
            let found = template(source).and_then(|t| t.at(now)).and_then(|t| t.render_variables(variables));
            match (&found, case["expect"].as_str()) {
                (Ok(found), Some(expected)) if found == expected => None,
                (Err(Error::Template { .. }), None) => None,
                _ => Some(format!("{source}\n  found    {found:?}\n  expected {}", case["expect"])),
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_conversation_with_tools_and_variables() {
    let template = template(
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.name or '' }}{% endfor %}\
         {% if tools %}{{ tools | tojson }}{% endif %}{{ documents is none }}{{ enable_thinking }}\
         {% if add_generation_prompt %}<assistant>{% endif %}",
    )
    .unwrap();
    let messages = [Message::system("Be brief."), Message::user("Hi").with("name", "Ann")];
    let plain = template.render(&messages, &TemplateOptions::default(), true).unwrap();
    assert_eq!(plain, "<system>Be brief.<user>HiAnnTrue<assistant>");

    let options =
        GenerateOptions::new().tools([json!({"name": "f"})]).template_variable("enable_thinking", false);
    let full = template.render(&messages[1..], &options.template, false).unwrap();
    assert_eq!(full, "<user>HiAnn[{\"name\": \"f\"}]TrueFalse");
}

/// Published templates (LFM2.5's) mark what the assistant says with a tag that Jinja2 alone refuses. transformers'
/// `apply_chat_template` brings an extension for it, and so gives the text, as here: 5.23 was asked.
#[test]
fn the_mark_of_what_the_assistant_says_is_no_text() {
    let source = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {% if not loop.last %}\n{% endif %}{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}";
    let messages =
        [Message::user("Hi"), Message::assistant("Hello"), Message::user("Bye"), Message::assistant("Ciao")];
    let text = template(source).unwrap().render(&messages, &TemplateOptions::default(), false).unwrap();
    assert_eq!(text, "<user>Hi\n<assistant>Hello<user>Bye\n<assistant>Ciao");
    assert!(render("{% generation %}a").is_err() && render("a{% endgeneration %}").is_err());
}

#[test]
fn reasoning_goes_by_all_the_names_that_templates_know() {
    let template =
        template("{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}").unwrap();
    let messages = [Message::assistant("4").with("reasoning", "2+2"), Message::assistant("5")];
    assert_eq!(template.render(&messages, &TemplateOptions::default(), false).unwrap(), "2+2/2+2;/;");
}

#[test]
fn a_folder_keeps_its_template_in_one_of_three_files() {
    let special = SpecialTokens::default();
    let text = |folder: &tempfile::TempDir, tools: Value| {
        let template = ChatTemplate::load(folder.path(), &special).unwrap().unwrap();
        template.render_variables(json!({"tools": tools}).as_object().unwrap()).unwrap()
    };
    assert!(ChatTemplate::load(folder(&[]).path(), &special).unwrap().is_none());

    let one = folder(&[("chat_template.json", &json!({"chat_template": "processor"}))]);
    assert_eq!(text(&one, Value::Null), "processor");

    let named = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]);
    let list = folder(&[("tokenizer_config.json", &json!({"chat_template": named}))]);
    assert_eq!(
        (text(&list, Value::Null), text(&list, json!([{}]))),
        ("plain".to_owned(), "tools".to_owned())
    );

    std::fs::write(list.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(text(&list, json!([{}])), "file");

    let bad = folder(&[("tokenizer_config.json", &json!({"chat_template": 5}))]);
    let error = ChatTemplate::load(bad.path(), &special).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidModel { key: Some(key), .. } if key == "chat_template"),
        "{error}"
    );
    let large = folder(&[("tokenizer_config.json", &json!({"chat_template": "x".repeat(1 << 20)}))]);
    assert!(ChatTemplate::load(large.path(), &special).is_err());
}

#[test]
fn special_tokens_reach_the_template() {
    let folder = folder(&[
        ("tokenizer.json", &byte_fallback(true)),
        (
            "tokenizer_config.json",
            &json!({"bos_token": "<s>", "eos_token": {"content": "</s>"},
            "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"}),
        ),
    ]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let template = ChatTemplate::load(folder.path(), tokenizer.special_tokens()).unwrap().unwrap();
    let text = template.render(&[Message::user("hello")], &TemplateOptions::default(), true).unwrap();
    assert_eq!(text, "<s>hello</s>");
    assert_eq!(tokenizer.encode(&text, false).unwrap().iter().filter(|id| **id == 1).count(), 1);
}

#[test]
fn an_error_says_where_and_why() {
    let error = render("a\n\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(error.to_string(), "chat template: line 3: roles must alternate");
    let error = render("{% if x %}").unwrap_err().to_string();
    assert!(error.contains("syntax error") || error.contains("unexpected"), "{error}");
}

/// Each of these would run for ever, fill the memory or overflow the stack of an interpreter without limits.
#[test]
fn hostile_templates_end_with_an_error() {
    let loops = "{% for a in range(99999) %}".repeat(4) + &"{% endfor %}".repeat(4);
    let doubling =
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let sources = [
        ("endless range", "{% for i in range(10**18) %}{% endfor %}".to_owned()),
        ("nested loops", loops),
        ("doubled text", doubling.to_owned()),
        ("doubled text by plus", doubling.replace('~', "+")),
        ("doubled list", doubling.replace("'ab'", "[1]").replace('~', "+")),
        ("doubling in a line", "{% set a = 'ab' %}".to_owned() + &"{% set a = a ~ a %}".repeat(60)),
        ("doubled by a macro", "{% set ns = namespace(x='ab') %}{% macro m() %}{{ ns.x }}{{ ns.x }}{% endmacro %}{% for i in range(99) %}{% set ns.x = m() %}{% endfor %}".to_owned()),
        ("doubled by replace", doubling.replace("ns.x ~ ns.x", "ns.x.replace('', ns.x)")),
        ("doubled by join", doubling.replace("ns.x ~ ns.x", "ns.x | join(ns.x)")),
        ("doubled by format", doubling.replace("ns.x ~ ns.x", "'{0}{0}'.format(ns.x)")),
        ("doubled by percent", doubling.replace("ns.x ~ ns.x", "'%s%s' % (ns.x, ns.x)")),
        ("doubled by capture", "{% set x = 'ab' %}".to_owned() + &"{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60)),
        ("repeated text", "{{ 'a' * 10**12 }}".to_owned()),
        ("repeated list", "{{ ([0] * 10**12) | length }}".to_owned()),
        ("wide field", "{{ '%999999999999d' % 1 }}".to_owned()),
        ("wide padding", "{{ 'a'.ljust(10**12) }}".to_owned()),
        ("wide indent", "{{ 'a\nb' | indent(10**12) }}".to_owned()),
        ("wide json", "{{ [[[1]]] | tojson(indent='x' * 10**7) }}".to_owned()),
        ("endless macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        ("branching macro", "{% macro m(n) %}{{ m(n+1) }}{{ m(n+1) }}{% endmacro %}{{ m(0) }}".to_owned()),
        ("endless caller", "{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}".to_owned()),
        ("endless loop()", "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".to_owned()),
        ("deep list", "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}".to_owned()),
        ("shared lists", "{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(90) + "{{ x }}"),
        ("shared lists compared", "{% set x = [1] %}{% set y = [1] %}".to_owned() + &"{% set x = [x, x] %}{% set y = [y, y] %}".repeat(90) + "{{ x == y }}"),
        ("shared lists sorted", "{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(90) + "{{ [x, x] | sort }}"),
        ("shared keys", "{% set x = (1,) %}".to_owned() + &"{% set x = (x, x) %}".repeat(90) + "{{ {x: 1, (x,): 2} }}"),
        ("self-holding namespace", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}".to_owned()),
        ("sorted copies", "{{ (['ab' * 4000000] * 1000000) | sort | length }}".to_owned()),
        ("mapped copies", "{{ (['ab' * 4000000] * 100000) | map('upper') | list | length }}".to_owned()),
        ("long chain", format!("{{{{ {}1 }}}}", "1 + ".repeat(60_000))),
        ("long filter chain", format!("{{{{ 1{} }}}}", " | int".repeat(40_000))),
        ("long attribute chain", format!("{{{{ a{} }}}}", ".a".repeat(120_000))),
        ("long elif chain", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000))),
        ("deep brackets", format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000))),
        ("deep parentheses", format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000))),
        ("deep blocks", "{% if 1 %}".repeat(20_000) + "{% endif %}"),
        ("much output", format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(100_000))),
        ("strange slice", "{{ 'abc'[::0] }}".to_owned()),
        ("wild clock", "{{ strftime_now('%999999999999Y' * 1000) }}".to_owned()),
    ];
    for (name, source) in sources {
        let begun = Instant::now();
        let result = render(&source);
        assert!(matches!(result, Err(Error::Template { .. })), "{name}: {:?}", result.map(|text| text.len()));
        // Without optimisation; with it, all take about a second together.
        assert!(begun.elapsed() < Duration::from_secs(30), "{name} took {:?}", begun.elapsed());
    }
}

#[test]
fn strange_slices_and_numbers_do_no_harm() {
    for source in [
        "{{ [1,2,3][9**18:-9**18:-9**17] }}{{ 'abc'[-9**18:9**18:9**18] }}",
        "{{ -(-170141183460469231731687303715884105727 - 1) }}",
        "{{ 9**99 }}{{ 2**10**9 }}",
        "{{ 1e308 * 10 }}{{ 1e999 | int }}{{ (1e999 - 1e999) | tojson }}",
        "{{ range(5, -9**20, -9**20) | list }}{{ range(0, 1, 9**30) | list }}",
        "{{ 'é'.center(7, 'ü') }}{{ 'é'[0:1] }}{{ '🙂'.find('') }}{{ 'é'.partition('') }}",
        "{{ [1] | batch(0) }}{{ [] | slice(3) | list }}{{ 'x' | truncate(0) }}{{ 5 | round(9999) }}",
        "{{ ''.format(1) }}{{ '{'.format(1) }}{{ '{:}'.format(1) }}{{ '%' % 1 }}{{ '%(a' % {} }}",
    ] {
        match render(source) {
            Ok(_) | Err(Error::Template { .. }) => {}
            Err(other) => panic!("{source}: {other:?}"),
        }
    }
}
