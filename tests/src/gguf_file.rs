//! GGUF files in pieces, so that tests can write others: split, with other keys, with other tensors.

use std::{fs, io, path::Path, process::Command};

/// Writes the golden fixtures as GGUF files into a folder: `xtask/python/gguf/make.py`.
///
/// # Panics
/// As [`run_script`].
pub fn write_fixtures(folder: &Path) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/backend-metal/tests/fixtures");
    run_script("gguf", &[&fixtures, folder]);
}

/// Runs `xtask/python/{name}/make.py` with the interpreter that `cargo xtask test` names.
///
/// # Panics
/// There is no such interpreter, or the script fails.
pub fn run_script(name: &str, arguments: &[&Path]) {
    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let python =
        std::env::var("GGUF_PYTHON").unwrap_or_else(|_| format!("{ROOT}/target/gguf-venv/bin/python"));
    let mut make = Command::new(&python);
    make.arg(format!("{ROOT}/xtask/python/{name}/make.py")).args(arguments);
    let made = make.status().unwrap_or_else(|error| panic!("{python}: {error}: run `cargo xtask test`"));
    assert!(made.success(), "{python}: run `cargo xtask test`, which makes the environment");
}

/// How far tensors are apart.
const ALIGNMENT: usize = 32;

/// llama.cpp's number of single precision.
pub const F32: u32 = 0;

/// A file's keys and tensors.
#[derive(Debug, Clone, Default)]
pub struct GgufFile {
    /// Keys with their values: the type and the bytes.
    pub keys: Vec<(String, Vec<u8>)>,
    /// Tensors in their order.
    pub tensors: Vec<Tensor>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its extents, innermost first.
    pub extents: Vec<u64>,
    /// llama.cpp's number of its type.
    pub kind: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// One of these elements.
    #[must_use]
    pub fn floats(name: &str, extents: &[u64], elements: &[f32]) -> Self {
        let bytes = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { name: name.to_owned(), extents: extents.to_vec(), kind: F32, bytes }
    }

    /// Its elements.
    ///
    /// # Panics
    /// It is of a type that is not known.
    #[must_use]
    pub fn elements(&self) -> Vec<f32> {
        let kind = gguf::TensorType::from_number(self.kind).expect("a known type");
        let mut elements = vec![0.0; self.extents.iter().product::<u64>() as usize];
        kind.dequantize(&self.bytes, &mut elements).expect("whole blocks");
        elements
    }
}

impl GgufFile {
    /// Reads a file that is right.
    ///
    /// # Errors
    /// The file system's.
    ///
    /// # Panics
    /// The file is broken.
    pub fn read(path: &Path) -> io::Result<Self> {
        let data = fs::read(path)?;
        let mut reader = Reader { data: &data, at: 8 };
        let (tensors, keys) = (reader.u64(), reader.u64());
        let keys = (0..keys).map(|_| (reader.text(), reader.value())).collect();
        let mut places = Vec::new();
        for _ in 0..tensors {
            let name = reader.text();
            let extents: Vec<u64> = (0..reader.u32()).map(|_| reader.u64()).collect();
            places.push((name, extents, reader.u32(), reader.u64() as usize));
        }
        let start = reader.at.next_multiple_of(ALIGNMENT);
        let tensor = |(name, extents, kind, offset): (String, Vec<u64>, u32, usize)| {
            let known = gguf::TensorType::from_number(kind).expect("a known type");
            let elements = extents.iter().product::<u64>() as usize;
            let length = elements / known.block_len() * known.block_bytes();
            let bytes = data[start + offset..][..length].to_vec();
            Tensor { name, extents, kind, bytes }
        };
        Ok(Self { keys, tensors: places.into_iter().map(tensor).collect() })
    }

    /// Sets a key to a text.
    pub fn set_text(&mut self, key: &str, text: &str) {
        self.set(key, 8, &[&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat());
    }

    /// Sets a key to a number of single precision.
    pub fn set_float(&mut self, key: &str, number: f32) {
        self.set(key, 6, &number.to_le_bytes());
    }

    /// Sets a key to a value of one of the format's types.
    pub fn set(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.keys.retain(|(name, _)| name != key);
        self.keys.push((key.to_owned(), [&kind.to_le_bytes(), bytes].concat()));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        for (key, value) in &self.keys {
            text(&mut file, key);
            file.extend(value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut file, &tensor.name);
            file.extend((tensor.extents.len() as u32).to_le_bytes());
            tensor.extents.iter().for_each(|extent| file.extend(extent.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(&tensor.bytes);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        fs::write(path, file)
    }
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> &[u8] {
        self.at += count;
        &self.data[self.at - count..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().expect("eight bytes"))
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8_lossy(self.bytes(length)).into_owned()
    }

    /// A value with its type.
    fn value(&mut self) -> Vec<u8> {
        let start = self.at;
        let kind = self.u32();
        self.skip(kind);
        self.data[start..self.at].to_vec()
    }

    fn skip(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => self.at += 1,
            2 | 3 => self.at += 2,
            4..=6 => self.at += 4,
            8 => drop(self.text()),
            9 => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| self.skip(kind));
            }
            _ => self.at += 8,
        }
    }
}
