//! Server-sent events: a stream of bytes, cut into JSON values.

use serde_json::Value;

/// Bytes of one event. The log-probabilities of a whole vocabulary have 100 bytes a token.
const LONGEST_EVENT: usize = 64 << 20;

/// Cuts a stream of bytes into events. Comments, with which the server keeps connections open, are none.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    line: Vec<u8>,
}

impl EventReader {
    /// Takes more bytes, and returns the events that they complete.
    ///
    /// # Errors
    /// Why the bytes are no events.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Value>, String> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            events.extend(event(&self.line)?);
            self.line.clear();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > LONGEST_EVENT {
            return Err(format!("an event has more than {LONGEST_EVENT} bytes"));
        }
        Ok(events)
    }
}

/// The value of a line; `None` for one that carries nothing. Errors of the server come as `data: {"error": …}` or `error: …`.
fn event(line: &[u8]) -> Result<Option<Value>, String> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.starts_with(b":") || line == b"data: [DONE]" {
        return Ok(None);
    }
    let parse = |json: &[u8]| {
        let shown = || child_process::excerpt(line);
        serde_json::from_slice::<Value>(json)
            .map_err(|error| format!("an event is no JSON ({error}): {}", shown()))
    };
    if let Some(json) = line.strip_prefix(b"data:") {
        return parse(json).map(Some);
    }
    if let Some(json) = line.strip_prefix(b"error:") {
        return Ok(Some(serde_json::json!({ "error": parse(json)? })));
    }
    // Other fields of the format: names, numbers, delays.
    let field = line.split(|byte| *byte == b':').next().unwrap_or_default();
    match field {
        b"event" | b"id" | b"retry" => Ok(None),
        _ => Err(format!("a line is no event: {}", child_process::excerpt(line))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_cut_out_of_any_pieces() {
        let stream = b": ping\n\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:{\"a\":2}\n\nerror: {\"code\":5}\n\ndata: [DONE]\n\n";
        for size in [1, 3, 7, stream.len()] {
            let mut reader = EventReader::default();
            let events: Vec<_> = stream.chunks(size).flat_map(|bytes| reader.push(bytes).unwrap()).collect();
            assert_eq!(events, [json!({"a": 1}), json!({"a": 2}), json!({"error": {"code": 5}})]);
        }
    }

    #[test]
    fn what_is_no_event_says_so() {
        assert!(EventReader::default().push(b"<html>\n").unwrap_err().contains("<html>"));
        assert!(EventReader::default().push(b"data: {\"a\n").unwrap_err().contains("is no JSON"));
        let mut reader = EventReader::default();
        assert!((0..65).any(|_| reader.push(&vec![b'x'; 1 << 20]).is_err()));
    }
}
