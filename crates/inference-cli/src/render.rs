//! What this program writes: stdout and stderr without a panic when the reader goes, tables, numbers with units, styles.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// The reader of stdout is gone (`| head`). This is not an error.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output has gone")
    }
}

impl std::error::Error for OutputClosed {}

/// Stdout. Its errors are [`OutputClosed`] when the reader is gone.
#[derive(Debug)]
pub(crate) struct Out {
    stdout: io::Stdout,
    terminal: bool,
}

impl Out {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        Self { terminal: stdout.is_terminal(), stdout }
    }

    /// Writes text that a model or a file made, at once: to a terminal without what could drive it.
    pub(crate) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        if self.terminal { self.write(&harmless(text)) } else { self.write(text) }
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.write(&format!("{line}\n"))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    /// Writes a table.
    pub(crate) fn table(&mut self, table: &Table) -> anyhow::Result<()> {
        self.line(&table.trim_fmt())
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => anyhow::Error::new(OutputClosed),
            _ => anyhow::Error::new(error).context("cannot write to the output"),
        })
    }
}

/// A table with these headings, as wide as the terminal allows.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().map(|heading| Cell::new(heading.to_uppercase())));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table of names and values, without headings.
pub(crate) fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    for (name, value) in rows {
        table.add_row([Cell::new(name), Cell::new(harmless(&value))]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A cell with its text at the right, for numbers.
pub(crate) fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A progress bar on stderr; hidden where that is no terminal.
pub(crate) fn progress(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("━╸ "))
}

/// Whether stderr takes colours: a terminal, and nobody set `NO_COLOR`.
pub(crate) fn stderr_is_styled() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes to stderr. A closed stderr is not an error.
pub(crate) fn tell(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// A line on stderr, dimmed on a terminal.
pub(crate) fn remark(text: &str) {
    match stderr_is_styled() {
        true => tell(&format!("\u{1b}[2m{text}\u{1b}[0m\n")),
        false => tell(&format!("{text}\n")),
    }
}

/// A piece of text on stderr, at once; dimmed on a terminal.
pub(crate) fn aside(text: &str) {
    match stderr_is_styled() {
        true => tell(&format!("\u{1b}[2m{}\u{1b}[0m", harmless(text))),
        false => tell(text),
    }
}

/// A path, with everything escaped that could drive a terminal or pass for another line.
pub(crate) fn path(path: impl AsRef<Path>) -> String {
    let mut safe = String::new();
    for c in path.as_ref().to_string_lossy().chars() {
        let reorders =
            matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c.is_control() || reorders {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    safe
}

/// The text with control characters spelt out, all but line breaks and tabs.
pub(crate) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            // Writing to a string cannot fail.
            let _ = write!(safe, "{}", c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A size in bytes with a decimal unit: `1.5 GB`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count, &["B", "KB", "MB", "GB", "TB", "PB"])
}

/// A large count: `1.7 B`, in thousands, millions, billions.
pub(crate) fn count(count: u64) -> String {
    scaled(count, &["", "K", "M", "B", "T"]).trim_end().to_owned()
}

/// A number of things, with an `s` where there is more or less than one: `3 files`.
pub(crate) fn things(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A duration in the unit that fits: `340 µs`, `12 ms`, `1.5 s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

/// A rate: whole above a hundred, with a decimal below.
pub(crate) fn rate(per_second: f64) -> String {
    if per_second >= 100.0 { format!("{per_second:.0}") } else { format!("{per_second:.1}") }
}

fn scaled(count: u64, units: &[&str]) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0 of the smaller unit.
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_have_the_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000_000), "1.5 GB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(count(596_049_920), "596.0 M");
        assert_eq!(count(12), "12");
        assert_eq!((things(1, "file"), things(0, "file")), ("1 file".to_owned(), "0 files".to_owned()));
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        assert_eq!(duration(Duration::from_micros(340)), "340 µs");
        assert_eq!(duration(Duration::from_millis(12)), "12 ms");
        assert_eq!(duration(Duration::from_millis(1500)), "1.50 s");
    }

    #[test]
    fn a_path_cannot_drive_the_terminal() {
        assert_eq!(path("m\u{1b}[2J/a\nb\u{202e}ü"), "m\\u{1b}[2J/a\\nb\\u{202e}ü");
    }

    #[test]
    fn a_models_text_cannot_drive_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\n\tü"), "a\\u{1b}[2Jb\\u{d}\n\tü");
    }
}
