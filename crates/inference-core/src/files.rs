//! Reading files of untrusted folders.

use std::{
    cell::Cell,
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    marker::PhantomData,
    path::Path,
};

use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, de::StrRead};
use serde_path_to_error::Track;

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
        return Err(Error::out_of_memory(what, length, 0));
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
    from_value(path, &read_value(path, limit)?)
}

/// Reads a JSON file of at most `limit` bytes, whatever is in it.
///
/// # Errors
/// As [`read_json`], and [`Error::InvalidModel`] for values that take many times as much memory as the file has bytes.
pub fn read_value(path: &Path, limit: u64) -> Result<Value> {
    let text = tagged_floats(read_text(path, limit)?);
    parse_with(path, &text, |deserializer| Strict::read(deserializer, limit))
}

/// Python writes `Infinity` for the bound of what has none, which JSON lacks. It becomes `{"__float__": "Infinity"}`, as transformers 5
/// writes it. `-Infinity` and `NaN`, which no configuration needs, stay what they are: a fault.
fn tagged_floats(text: String) -> String {
    const NAME: &str = "Infinity";
    if !text.contains(NAME) {
        return text;
    }
    let (mut out, mut rest, mut quoted) = (String::with_capacity(text.len() + 64), &*text, false);
    while let Some(first) = rest.chars().next() {
        if !quoted && rest.starts_with(NAME) && !out.ends_with('-') {
            out.extend([r#"{"__float__": ""#, NAME, r#""}"#]);
            rest = &rest[NAME.len()..];
            continue;
        }
        let length = match first {
            // What is escaped ends no string.
            '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            first => {
                quoted ^= first == '"';
                first.len_utf8()
            }
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
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
    parse_with(path, text, |deserializer| T::deserialize(deserializer))
}

/// What reads JSON, and remembers where in it.
type Tracking<'a, 'b, 't> =
    serde_path_to_error::Deserializer<'a, 'b, &'a mut serde_json::Deserializer<StrRead<'t>>>;

fn parse_with<'t, T>(
    path: &Path,
    text: &'t str,
    read: impl FnOnce(Tracking<'_, '_, 't>) -> Result<T, serde_json::Error>,
) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut track = Track::new();
    let value = read(Tracking::new(&mut deserializer, &mut track)).map_err(|error| {
        let key = key_of(&track.path());
        let advice = advice(text, &error);
        Error::InvalidModel { path: path.into(), key, reason: format!("{error}{advice}") }
    })?;
    let end = deserializer.end();
    end.map_err(|error| Error::invalid_file(path, format!("goes on after its JSON: {error}")))?;
    Ok(value)
}

/// `text` of at most `limit` bytes as JSON none of whose objects names a key twice.
pub(crate) fn parse_strict(text: &str, limit: u64) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict::read(&mut deserializer, limit)?;
    deserializer.end().map(|()| value)
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

/// Reads JSON none of whose objects names a key twice, and no more of it than there is room for.
#[derive(Clone, Copy)]
struct Strict<'l> {
    left: &'l Cell<u64>,
}

/// What parts of a JSON value take, in units of some 80 bytes of memory: a list or an object, an entry of an object, an item or
/// a string.
const CONTAINER: u64 = 4;
const ENTRY: u64 = 2;
const ITEM: u64 = 1;

impl Strict<'_> {
    /// Reads a file's JSON. Values take many times as much memory as their text: of `[0,0,0]` 36 times as much. They may take
    /// some six times a file's `limit`, which files of people stay far below.
    fn read<'de, D: Deserializer<'de>>(deserializer: D, limit: u64) -> Result<Value, D::Error> {
        let left = Cell::new(limit / 64 * 5);
        Strict { left: &left }.deserialize(deserializer)
    }

    fn take<E: serde::de::Error>(self, units: u64) -> Result<(), E> {
        let left = self.left.get().checked_sub(units);
        self.left.set(left.ok_or_else(|| E::custom("has too many values"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
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

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.take(ITEM)?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(CONTAINER)?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            self.take(ITEM)?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.take(CONTAINER)?;
        let mut object = Map::new();
        while let Some((key, value)) = entries.next_entry_seed(PhantomData::<String>, self)? {
            self.take(ENTRY)?;
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} occurs twice")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
