//! Names of models.

use std::{fmt, str::FromStr};

use crate::HubError;

/// Characters of a name's part at most.
const LONGEST: usize = 96;

/// A model of the Hub: `organisation/name`, or `organisation/name@revision` for a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    organisation: String,
    name: String,
    revision: Option<String>,
}

impl ModelName {
    /// `organisation/name`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    /// The revision; `main` where none was named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The folder of the cache: `models--organisation--name`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.organisation, self.name)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

impl FromStr for ModelName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let invalid =
            |reason: &str| HubError::InvalidName { name: text.to_owned(), reason: reason.to_owned() };
        let (path, revision) = text.split_once('@').map_or((text, None), |(path, rev)| (path, Some(rev)));
        let Some((organisation, name)) = path.split_once('/') else {
            return Err(invalid("it has no organisation"));
        };
        if !is_part(organisation) || !is_part(name) {
            return Err(invalid("its parts are letters, digits, -, _ and ., 1 to 96 of them"));
        }
        if revision.is_some_and(|revision| !revision.split('/').all(is_part)) {
            return Err(invalid("its revision is no branch, tag or commit"));
        }
        let revision = revision.map(str::to_owned);
        Ok(Self { organisation: organisation.to_owned(), name: name.to_owned(), revision })
    }
}

/// Whether this may be a part of a name, and of a path.
fn is_part(part: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty()
        && part.len() <= LONGEST
        && part.chars().all(letter)
        && !part.starts_with(['.', '-'])
        && !part.contains("..")
        && !part.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let name: ModelName = "mlx-community/Qwen3-0.6B-4bit".parse().unwrap();
        assert_eq!(
            (name.folder().as_str(), name.revision()),
            ("models--mlx-community--Qwen3-0.6B-4bit", "main")
        );
        let name: ModelName = "a/b@refs/pr/1".parse().unwrap();
        assert_eq!((name.revision(), name.to_string().as_str()), ("refs/pr/1", "a/b@refs/pr/1"));
        for wrong in ["a", "a/b/c", "../b", "a/..", "/b", "a/", "a/b@", "a/b@../x", "a/b c", "~/b", "a--b/c"]
        {
            assert!(wrong.parse::<ModelName>().is_err(), "{wrong}");
        }
    }
}
