//! Whether the libraries in the cache are those of the wheels that were downloaded.
//!
//! pip checks a wheel when it downloads it. The libraries then stay in the cache, and each run of the build script links them. So
//! each run compares them with their SHA-256: that of libmlx is pinned in `wheels/`, and those of the others are in the wheels'
//! `RECORD` files. A library that was verified is hashed again only if its size or its times changed.

use std::{collections::HashMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use sha2::{Digest, Sha256};

use crate::Result;

/// The file in the cache that says which libraries were verified.
const STAMPS: &str = "verified.txt";

/// Verifies all libraries of the wheels in `home`. `pins` are the possible digests of the library `pinned`. Returns their paths,
/// relative to `home`.
///
/// # Errors
///
/// A library is missing, or is not the wheel's.
pub(crate) fn verify(home: &Path, pinned: &str, pins: &[String]) -> Result<Vec<String>> {
    let mut libraries = recorded(home)?;
    libraries.insert(pinned.to_owned(), pins.to_vec());
    let stamps = fs::read_to_string(home.join(STAMPS)).unwrap_or_default();
    let known: HashMap<_, _> = stamps.lines().filter_map(|line| line.split_once('\t')).collect();
    let mut paths: Vec<_> = libraries.keys().cloned().collect();
    paths.sort();
    let mut verified = String::new();
    for path in &paths {
        let file = home.join(path);
        let stamp = stamp(&file).map_err(|error| changed(home, &file, &error.to_string()))?;
        if known.get(path.as_str()) != Some(&stamp.as_str()) {
            let digest = digest(&file).map_err(|error| changed(home, &file, &error.to_string()))?;
            let expected = &libraries[path];
            if !expected.contains(&digest) {
                let reason = format!("its digest is {digest}, expected {}", expected.join(" or "));
                return Err(changed(home, &file, &reason));
            }
        }
        verified += &format!("{path}\t{stamp}\n");
    }
    if verified != stamps {
        // In one step, for builds beside this one. A cache that cannot be written is verified at every run.
        let aside = home.join(format!(".{}-{STAMPS}", std::process::id()));
        let _ = fs::write(&aside, &verified).and_then(|()| fs::rename(&aside, home.join(STAMPS)));
    }
    Ok(paths)
}

/// The libraries of the wheels in `home`, relative to it.
pub(crate) fn libraries(home: &Path) -> Result<Vec<String>> {
    Ok(recorded(home)?.into_keys().collect())
}

/// The libraries that the `RECORD` files in `home` list, with their digests.
fn recorded(home: &Path) -> Result<HashMap<String, Vec<String>>> {
    let read = |error: io::Error| format!("cannot read {}: {error}", home.display());
    let mut libraries = HashMap::new();
    for entry in fs::read_dir(home).map_err(read)? {
        let record = entry.map_err(read)?.path().join("RECORD");
        let Ok(text) = fs::read_to_string(&record) else { continue };
        for line in text.lines() {
            // "mlx/lib/libmlx.so,sha256=…,123"; a path with a comma is quoted, and no library's is.
            let mut fields = line.split(',');
            let (Some(path), Some(digest)) = (fields.next(), fields.next()) else { continue };
            if is_library(path) && digest.starts_with("sha256=") {
                libraries.insert(path.to_owned(), vec![digest.to_owned()]);
            }
        }
    }
    Ok(libraries)
}

/// Whether a file of a wheel is code that a program loads.
fn is_library(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.ends_with(".so") || name.contains(".so.") || name.ends_with(".dylib") || name.ends_with(".metallib")
}

/// What changes when a file is written: its size, and the times of its last change.
fn stamp(file: &Path) -> io::Result<String> {
    let metadata = fs::metadata(file)?;
    let (modified, changed) = (metadata.mtime_nsec(), metadata.ctime_nsec());
    Ok(format!("{} {}.{modified:09} {}.{changed:09}", metadata.len(), metadata.mtime(), metadata.ctime()))
}

/// The SHA-256 of a file, as `RECORD` files write it.
fn digest(file: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut fs::File::open(file)?, &mut Writer(&mut hasher))?;
    Ok(format!("sha256={}", base64(&hasher.finalize())))
}

struct Writer<'a>(&'a mut Sha256);

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Base64 for URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

fn changed(home: &Path, file: &Path, reason: &str) -> String {
    format!(
        "{} is not the file that MLX's wheel holds: {reason}. It was changed after it was downloaded, and nothing was linked. \
         Remove {} and build again, which downloads the wheel again.",
        file.display(),
        home.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: &str = "mlx/lib/libmlx.so";
    const OTHER: &str = "mlx.libs/libblas-1.so.3";

    /// A cache with two libraries, and the digest of the first.
    fn cache() -> (tempfile::TempDir, String) {
        let home = tempfile::tempdir().unwrap();
        for (path, text) in [(LIBRARY, "abc"), (OTHER, "other"), ("mlx/include/mlx.h", "header")] {
            let file = home.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let digest_of = |path: &str| digest(&home.path().join(path)).unwrap();
        let record =
            format!("{LIBRARY},sha256=x,3\n{OTHER},{},5\nmlx/include/mlx.h,sha256=x,6\n", digest_of(OTHER));
        fs::create_dir(home.path().join("mlx.dist-info")).unwrap();
        fs::write(home.path().join("mlx.dist-info/RECORD"), record).unwrap();
        let pin = digest_of(LIBRARY);
        (home, pin)
    }

    #[test]
    fn a_digest_is_that_of_record_files() {
        let (_home, pin) = cache();
        // SHA-256 of "abc", from FIPS 180-4.
        assert_eq!(pin, "sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0");
    }

    #[test]
    fn a_changed_library_is_noticed_even_after_it_was_verified() {
        for (path, text) in [(LIBRARY, "abd"), (LIBRARY, "longer"), (OTHER, "OTHER"), (LIBRARY, "")] {
            let (home, pin) = cache();
            let run = || verify(home.path(), LIBRARY, std::slice::from_ref(&pin));
            assert_eq!(run().unwrap(), [OTHER, LIBRARY]);
            assert_eq!(run().unwrap(), [OTHER, LIBRARY]);
            let file = home.path().join(path);
            // With the old time of modification: the time of the change of status still tells.
            let modified = fs::metadata(&file).unwrap().modified().unwrap();
            fs::write(&file, text).unwrap();
            fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
            let message = run().unwrap_err();
            assert!(message.contains(path) && message.contains("Remove"), "{message}");
            assert!(run().is_err());
            fs::remove_file(&file).unwrap();
            assert!(run().unwrap_err().contains(path));
        }
    }

    #[test]
    fn a_library_that_is_no_pin_is_refused_whatever_its_record_says() {
        let (home, _) = cache();
        let message = verify(home.path(), LIBRARY, &["sha256=other".into()]).unwrap_err();
        assert!(message.contains(LIBRARY) && message.contains("sha256=other"), "{message}");
    }
}
