//! Templates against what Python's Jinja2 makes of the same sources, and the failures that say where and why.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use chat_template::{Environment, Error, ErrorKind, Template};
use serde_json::{Map, Value, json};

fn render(source: &str) -> Result<String, Error> {
    Template::parse(source)?.render(&Map::new())
}

/// `tests/data/make_jinja2.py` makes the expectations.
#[test]
fn templates_give_what_pythons_jinja2_gives() {
    let data: Value = serde_json::from_str(include_str!("data/jinja2.json")).unwrap();
    let variables = data["vars"].as_object().unwrap();
    let environment = Environment::new().at(data["now"].as_str().unwrap()).unwrap();
    let cases = data["cases"].as_array().unwrap();
    assert!(cases.len() > 240);
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let source = case["source"].as_str().unwrap();
            let found = Template::parse(source).and_then(|t| t.render_in(&environment, variables));
            match (&found, case["expect"].as_str()) {
                (Ok(found), Some(expected)) if found == expected => None,
                (Err(_), None) => None,
                _ => Some(format!("{source}\n  found    {found:?}\n  expected {}", case["expect"])),
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Published templates (LFM2.5's) mark what the assistant says with a tag that Jinja2 alone refuses. transformers'
/// `apply_chat_template` brings an extension for it, and so gives the text, as here: 5.23 was asked.
#[test]
fn the_mark_of_what_the_assistant_says_is_no_text() {
    let source = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {% if not loop.last %}\n{% endif %}{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}";
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = [
        message("user", "Hi"),
        message("assistant", "Hello"),
        message("user", "Bye"),
        message("assistant", "Ciao"),
    ];
    let variables = json!({"messages": messages});
    let text = Template::parse(source).unwrap().render(variables.as_object().unwrap()).unwrap();
    assert_eq!(text, "<user>Hi\n<assistant>Hello<user>Bye\n<assistant>Ciao");
    assert!(render("{% generation %}a").is_err() && render("a{% endgeneration %}").is_err());
}

#[test]
fn an_error_says_where_and_why() {
    let error = render("a\n\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(
        (error.kind(), error.line(), error.message()),
        (ErrorKind::Raised, Some(3), "roles must alternate")
    );
    assert_eq!(error.to_string(), "line 3: roles must alternate");
    let error = render("\n{% if x %}").unwrap_err();
    assert_eq!((error.kind(), error.line()), (ErrorKind::Syntax, Some(2)));
    assert_eq!(render("{{ x.y }}").unwrap_err().to_string(), "line 1: 'x' is undefined");
    let kinds = [
        ("{{ 1 / 0 }}", ErrorKind::Runtime),
        ("{% nosuchtag %}", ErrorKind::Syntax),
        ("{{ 'a' * 10 ** 9 }}", ErrorKind::LimitExceeded),
    ];
    for (source, kind) in kinds {
        assert_eq!(render(source).unwrap_err().kind(), kind, "{source}");
    }
}

/// One template serves many threads.
#[test]
fn a_template_is_shared() {
    let template = Template::parse("{% for i in range(100) %}{{ i }}{% endfor %}").unwrap();
    let expected = template.render(&Map::new()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(template.render(&Map::new()).unwrap(), expected));
        }
    });
}

#[test]
fn a_rendering_can_be_cancelled() {
    let environment = Environment::new().cancelled(|| true);
    let error = Template::parse("a{{ 1 }}").unwrap().render_in(&environment, &Map::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn random_texts_follow_the_seed() {
    let text = |source: &str, seed| {
        Template::parse(source).unwrap().render_in(&Environment::new().seed(seed), &Map::new()).unwrap()
    };
    for source in ["{{ range(1000) | random }}", "{{ lipsum(n=2, html=false) }}"] {
        assert_eq!(text(source, 1), text(source, 1));
        assert_ne!(text(source, 1), text(source, 2));
    }
    let lorem = text("{{ lipsum(n=1, min=5, max=6) }}", 0);
    assert!(lorem.starts_with("<p>") && lorem.ends_with(".</p>") && lorem.split(' ').count() == 5, "{lorem}");
}
