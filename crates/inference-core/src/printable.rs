//! Untrusted text in messages.

use std::fmt;

/// Text from an untrusted file, shown with its control characters escaped so that it cannot drive a terminal or pass for
/// another line of the message, and cut after 400 characters.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 400;
        for (shown, c) in self.0.chars().enumerate() {
            if shown == LONGEST {
                return f.write_str("…");
            }
            // Separators begin a line and bidirectional overrides reorder what a terminal shows, as controls move its cursor.
            let reorders =
                matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if c.is_control() || reorders {
                write!(f, "{}", c.escape_default())?;
            } else {
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

/// The same of a text of several lines, such as what a process wrote before it ended.
pub(crate) struct Lines<'a>(pub(crate) &'a str);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.0.lines();
        write!(f, "{}", Printable(lines.next().unwrap_or_default()))?;
        lines.try_for_each(|line| write!(f, "\n  {}", Printable(line)))
    }
}
