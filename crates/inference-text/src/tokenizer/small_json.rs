//! JSON of a bounded size: reading it never takes more memory than the bound, whatever a file holds.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Any JSON of a bounded size: an element counts as [`ELEMENT`] bytes, a string as its own besides.
#[derive(Default)]
pub(super) struct SmallJson<const LIMIT: usize>(pub(super) Value);

/// Memory that an element of a JSON value takes.
const ELEMENT: usize = 64;

impl<'de, const LIMIT: usize> Deserialize<'de> for SmallJson<LIMIT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut left = LIMIT;
        Element { left: &mut left, limit: LIMIT }.deserialize(deserializer).map(Self)
    }
}

/// Reads one element of a bounded JSON value.
struct Element<'l> {
    left: &'l mut usize,
    limit: usize,
}

impl Element<'_> {
    fn charge<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        *self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            E::custom(format!("takes more than {} bytes, the most allowed for this part", self.limit))
        })?;
        Ok(())
    }

    fn inner(&mut self) -> Element<'_> {
        Element { left: self.left, limit: self.limit }
    }
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(mut self, deserializer: D) -> Result<Value, D::Error> {
        self.charge(ELEMENT)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a description of steps")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<Value, E> {
        self.charge(text.len())?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.charge(key.len())?;
            let value = map.next_value_seed(self.inner())?;
            if entries.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format!("has the key {key:?} twice")));
            }
        }
        Ok(Value::Object(entries))
    }
}
