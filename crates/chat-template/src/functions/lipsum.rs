//! `lipsum`: text without a meaning.

use crate::{
    args::Args,
    budget::STEP,
    context::Context,
    error::{Result, runtime},
    value::{TextBuilder, Value},
};

const WORDS: &[&str] = &[
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
    "incididunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "magna",
    "aliqua",
    "enim",
    "ad",
    "minim",
    "veniam",
    "quis",
    "nostrud",
    "exercitation",
    "ullamco",
    "laboris",
    "nisi",
    "aliquip",
    "ex",
    "ea",
    "commodo",
    "consequat",
    "duis",
    "aute",
    "irure",
    "in",
    "reprehenderit",
    "voluptate",
    "velit",
    "esse",
    "cillum",
    "eu",
    "fugiat",
    "nulla",
    "pariatur",
    "excepteur",
    "sint",
    "occaecat",
    "cupidatat",
    "non",
    "proident",
    "sunt",
    "culpa",
    "qui",
    "officia",
    "deserunt",
    "mollit",
    "anim",
    "id",
    "est",
    "laborum",
];

/// `lipsum(n=5, html=true, min=20, max=100)`: so many paragraphs of so many words.
pub(super) fn lipsum(context: &Context, args: &Args) -> Result<Value> {
    let [paragraphs, html, min, max] = args.bind("lipsum", ["n", "html", "min", "max"])?;
    let number = |value: Option<Value>, unset: i64| match value {
        Some(value) => value.as_int().ok_or_else(|| runtime!("lipsum() needs integers")),
        None => Ok(unset),
    };
    let (paragraphs, min, max) = (number(paragraphs, 5)?, number(min, 20)?, number(max, 100)?);
    let html = html.is_none_or(|html| html.is_true());
    let span = usize::try_from(max.saturating_sub(min)).unwrap_or(0);
    if span == 0 {
        return Err(runtime!("lipsum() needs a max above its min"));
    }
    let mut out = context.heap.builder();
    for at in 0..paragraphs.max(0) {
        if at > 0 {
            out.push_str(if html { "\n" } else { "\n\n" })?;
        }
        let count = min.saturating_add(i64::try_from(context.below(span)).unwrap_or(0));
        out.push_str(if html { "<p>" } else { "" })?;
        paragraph(context, count, &mut out)?;
        out.push_str(if html { "</p>" } else { "" })?;
    }
    out.done(html).map(Value::Str)
}

/// Words in sentences, with a comma now and then.
fn paragraph(context: &Context, count: i64, out: &mut TextBuilder) -> Result<()> {
    let mut capital = true;
    let (mut to_comma, mut to_stop) = (3 + context.below(5), 10 + context.below(10));
    for at in 0..count {
        context.heap.charge(STEP)?;
        if at > 0 {
            out.push(' ')?;
        }
        let word = WORDS[context.below(WORDS.len())];
        if capital {
            out.push(char::from(word.as_bytes()[0].to_ascii_uppercase()))?;
            out.push_str(&word[1..])?;
        } else {
            out.push_str(word)?;
        }
        capital = false;
        (to_comma, to_stop) = (to_comma.saturating_sub(1), to_stop.saturating_sub(1));
        if at + 1 == count {
            break;
        }
        if to_stop == 0 {
            out.push('.')?;
            capital = true;
            (to_comma, to_stop) = (3 + context.below(5), 10 + context.below(10));
        } else if to_comma == 0 {
            out.push(',')?;
            to_comma = 3 + context.below(5);
        }
    }
    out.push('.')
}
