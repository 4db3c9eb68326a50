//! Headers, whole and broken.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use gguf::{Header, TensorType};
use proptest::prelude::*;

/// Writes a file piece by piece.
#[derive(Clone, Default)]
struct File(Vec<u8>);

impl File {
    fn new(version: u32, tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut file = self.u64(text.len() as u64);
        file.0.extend(text.as_bytes());
        file
    }

    fn tensor(self, name: &str, shape: &[u64], kind: TensorType, offset: u64) -> Self {
        let file = self.text(name).u32(shape.len() as u32);
        let file = shape.iter().fold(file, |file, extent| file.u64(*extent));
        file.u32(kind.number()).u64(offset)
    }

    fn padded(mut self, data: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + data, 7);
        self
    }

    fn read(&self) -> Result<Header, String> {
        Header::read(&self.0[..], self.0.len() as u64).map_err(|error| error.to_string())
    }
}

fn small() -> File {
    File::new(3, 2, 3)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .text("list")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("one")
        .text("")
        .text("count")
        .u32(4)
        .u32(7)
        .tensor("b", &[32, 3], TensorType::Q4_0, 32)
        .tensor("a", &[5], TensorType::F32, 0)
        .padded(32 + 54)
}

#[test]
fn metadata_and_places_are_read() {
    let header = small().read().unwrap();
    assert_eq!(header.metadata.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(header.metadata.unsigned("count").unwrap(), Some(7));
    let list: Vec<_> = header.metadata.texts("list").unwrap().unwrap().iter().collect();
    assert_eq!(list, ["one", ""]);
    let error = header.metadata.flag("count").unwrap_err().to_string();
    assert_eq!(error, "count: is 7, expected true or false");
    let [a, b] = &header.tensors[..] else { panic!("{:?}", header.tensors) };
    assert_eq!((a.name.as_str(), &a.shape[..], a.range.end - a.range.start), ("a", &[5][..], 20));
    assert_eq!((b.name.as_str(), &b.shape[..], b.range.start - a.range.start), ("b", &[3, 32][..], 32));
    assert_eq!((b.row_bytes(), b.range.end - b.range.start), (18, 54));
}

#[test]
fn what_is_wrong_is_named() {
    let one =
        |kind, shape: &[u64], offset, data| File::new(3, 1, 0).tensor("t", shape, kind, offset).padded(data);
    for (file, says) in [
        (File(b"GGUG".to_vec()), "no GGUF file"),
        (File::new(1, 0, 0), "version 1 of GGUF"),
        (File::new(3_u32.swap_bytes(), 0, 0), "big-endian"),
        (File::new(3, u64::MAX, 0), "claims 18446744073709551615 tensors"),
        (File::new(3, 0, u64::MAX), "claims 18446744073709551615 keys"),
        (File::new(3, 0, 1), "cut short"),
        (File::new(3, 0, 1).u64(u64::MAX), "a key of 18446744073709551615 bytes"),
        (File::new(3, 0, 1).text("k").u32(8).u64(1 << 40), "a value of \"k\" of 1099511627776 bytes"),
        (File::new(3, 0, 1).text("k").u32(8).u64(1 << 20), "cut short"),
        (File::new(3, 0, 1).text("k").u32(9).u32(4).u64(1 << 40), "has 1099511627776 values"),
        (File::new(3, 0, 1).text("k").u32(9).u32(9).u64(1), "list of lists"),
        (File::new(3, 0, 1).text("k").u32(77), "unknown type 77"),
        (File::new(3, 0, 1).text("k").u32(7).u32(2), "expected 0 or 1"),
        (File::new(3, 0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1), "k: occurs twice"),
        (File::new(3, 1, 0).text("t").u32(5), "5 dimensions"),
        (File::new(3, 1, 0).text("t").u32(1).u64(32).u32(4).u64(0), "type 4, which is unknown"),
        (one(TensorType::F32, &[0], 0, 0), "product is 0"),
        (one(TensorType::F32, &[1 << 40, 1 << 40], 0, 0), "too large"),
        (one(TensorType::F32, &[1 << 62], 0, 0), "too large"),
        (one(TensorType::Q4_0, &[33], 0, 0), "whole blocks of 32 in Q4_0"),
        (one(TensorType::F32, &[8], 4, 64), "no multiple of the alignment"),
        (one(TensorType::F32, &[8], 64, 128), "belong to no tensor"),
        (one(TensorType::F32, &[8], 0, 31), "cut short"),
        (one(TensorType::F32, &[8], u64::MAX - 31, 64), "too large"),
        (
            File::new(3, 2, 0)
                .tensor("t", &[16], TensorType::F32, 0)
                .tensor("u", &[16], TensorType::F32, 32)
                .padded(128),
            "within the tensor before it",
        ),
        (
            File::new(3, 2, 0)
                .tensor("t", &[8], TensorType::F32, 0)
                .tensor("t", &[8], TensorType::F32, 32)
                .padded(64),
            "t: occurs twice",
        ),
        (File::new(3, 0, 1).text("general.alignment").u32(4).u32(24), "expected a power of two"),
    ] {
        let error = file.read().unwrap_err();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

proptest! {
    #[test]
    fn no_file_is_worse_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = File([b"GGUF\x03\0\0\0".to_vec(), bytes].concat()).read();
    }

    #[test]
    fn changed_files_keep_their_tensors_inside(place in 0_usize..300, byte in any::<u8>(), cut in 0_usize..400) {
        let mut file = small();
        let length = file.0.len();
        file.0[place % length] = byte;
        file.0.truncate(length - cut.min(length));
        if let Ok(header) = file.read() {
            prop_assert!(header.tensors.iter().all(|tensor| tensor.range.end <= file.0.len() as u64));
        }
    }
}
