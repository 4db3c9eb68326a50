//! Reading files of untrusted folders.

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use crate::{Error, Result};

/// The beginning of a git-lfs pointer, which stands for a large file that was not fetched.
pub(crate) const LFS_POINTER: &str = "version https://git-lfs";

/// What to do about a git-lfs pointer.
pub(crate) const LFS_ADVICE: &str = "is a git-lfs pointer in place of the file itself: run `git lfs pull`";

/// Reads a regular file of at most `limit` bytes. A pipe, device or folder in its place is named, never waited for.
///
/// # Errors
/// [`Error::Io`] if the file is missing or unreadable; [`Error::InvalidModel`] if it is no regular file, a link to nothing
/// or longer than `limit`.
pub fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    if length > limit {
        return Err(Error::invalid_file(path, format!("has {length} bytes, expected at most {limit}")));
    }
    let mut bytes = Vec::new();
    // A sparse file can claim any length without a byte behind it.
    let reserved = usize::try_from(length).ok().filter(|length| bytes.try_reserve_exact(*length).is_ok());
    if reserved.is_none() {
        let what = format!("{} in memory", path.display());
        return Err(Error::OutOfMemory { what, needed: length, available: 0 });
    }
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| Error::io("read", path, source))?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid_file(path, format!("grew past {limit} bytes while it was read")));
    }
    Ok(bytes)
}

/// Reads a JSON file of at most `limit` bytes. An object that names a key twice is refused: readers differ in which they take.
///
/// # Errors
/// As [`read_regular`]; [`Error::InvalidModel`] if the file is not UTF-8, not JSON, nested deeper than 127 levels or not what
/// `T` expects, with the key at fault.
pub fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let text = read_text(path, limit)?;
    let Strict(value) = parse_json(path, &text)?;
    from_value(path, &value)
}

/// A file's text, with what stands in its place named.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let bytes = read_regular(path, limit)?;
    let wrong = if bytes.is_empty() {
        "is empty: download it again"
    } else if bytes.starts_with(LFS_POINTER.as_bytes()) {
        LFS_ADVICE
    } else if bytes.starts_with(b"\xef\xbb\xbf") {
        "begins with a byte order mark: save it as UTF-8 without one"
    } else if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        "is UTF-16: save it as UTF-8"
    } else {
        return String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            Error::invalid_file(path, format!("is not UTF-8 at byte {offset}"))
        });
    };
    Err(Error::invalid_file(path, wrong))
}

/// `text` as `T`; `path` is for the error.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let key = key_of(error.path());
        let error = error.into_inner();
        let advice = advice(text, &error);
        Error::InvalidModel { path: path.into(), key, reason: format!("{error}{advice}") }
    })?;
    let end = deserializer.end();
    end.map_err(|error| Error::invalid_file(path, format!("goes on after its JSON: {error}")))?;
    Ok(value)
}

/// `text` as JSON none of whose objects names a key twice.
pub(crate) fn parse_strict(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).map(|Strict(value)| value)
}

/// `value` as `T`; `path` is for the error, which names the key.
pub(crate) fn from_value<T: DeserializeOwned>(path: &Path, value: &Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| Error::InvalidModel {
        path: path.into(),
        key: key_of(error.path()),
        reason: error.into_inner().to_string(),
    })
}

/// Opens a regular file, and returns its length with it. A pipe, device or folder in its place is named, never waited for.
///
/// # Errors
/// As [`read_regular`].
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let metadata = fs::metadata(path).map_err(|source| match fs::read_link(path) {
        Ok(target) if source.kind() == io::ErrorKind::NotFound => {
            let reason = format!("is a link to {target:?}, which does not exist: download it again");
            Error::invalid_file(path, reason)
        }
        _ => Error::io("read", path, source),
    })?;
    // Looked at before it is opened: opening a pipe waits for its writer, opening a device can set it off.
    check_regular(path, &metadata)?;
    let mut options = File::options();
    options.read(true);
    // Something else may stand there by now: a pipe without a writer must not hold the open call.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|source| Error::io("open", path, source))?;
    let metadata = file.metadata().map_err(|source| Error::io("read", path, source))?;
    check_regular(path, &metadata)?;
    Ok((file, metadata.len()))
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(Error::invalid_file(path, format!("is {}, expected a regular file", kind(metadata))))
}

fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return "a named pipe";
        } else if kind.is_socket() {
            return "a socket";
        } else if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    "no file"
}

/// The key that serde was at, if it had reached one.
pub(crate) fn key_of(path: &serde_path_to_error::Path) -> Option<String> {
    let key = path.to_string();
    let key = key.trim_end_matches(['.', '?']);
    (!key.is_empty()).then(|| key.to_owned())
}

fn advice(text: &str, error: &serde_json::Error) -> &'static str {
    if error.is_eof() {
        return "; the file was cut short: download it again";
    }
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let near = line.get(error.column().saturating_sub(2)..).unwrap_or_default();
    let near = near.trim_start_matches(|c| " :,[-".contains(c));
    if error.is_syntax() && (near.starts_with("NaN") || near.starts_with("Infinity")) {
        return "; NaN and Infinity are not JSON: write a finite number";
    }
    ""
}

/// A JSON value none of whose objects names a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::String(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::String(value))
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(Strict(value)) = items.next_element()? {
                    values.push(value);
                }
                Ok(Value::Array(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
                    if object.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the key {key:?} occurs twice")));
                    }
                    object.insert(key, value);
                }
                Ok(Value::Object(object))
            }
        }

        deserializer.deserialize_any(AnyValue).map(Strict)
    }
}
